"""A codec of one's own, with error feedback: mpirun -n 2 python examples/own_codec.py"""

import numpy as np

import hpcai
from hpcai.compress.codec import Codec
from hpcai.reduce.combine import by_gather, error_feedback


def encode(x, state):
    """Whole hundredths, in 16 bits."""
    return (np.rint(x * 100).astype(np.int16),), state


def decode(payload, n):
    """And back."""
    return payload[0].astype(np.float32) / 100


comm = hpcai.init()
reducer = error_feedback(by_gather(Codec("hundredths", encode, decode)))
gradient = np.full(1000, 0.001 * (comm.rank + 1), np.float32)
state, delivered = reducer.init(gradient), np.zeros_like(gradient)
for _step in range(100):
    mean, _, state = reducer.reduce(gradient.copy(), comm, state)
    delivered += mean
if comm.rank == 0:
    print(f"true sum of means {0.05 * (comm.size + 1):.3f}, delivered {delivered[0]:.3f}: what is left out comes later")
