"""Random blocks of the array, the same on all ranks, so that payloads can be summed on the way.

Source: Stich, Cordonnier & Jaggi, arXiv:1809.07599.
"""

from __future__ import annotations

import numpy as np

from hpcai.compress.codec import Codec, Payload, State
from hpcai.ops import streams
from hpcai.xp import Array

BLOCK = 64


def random_k(ratio: float, seed: int = 0) -> Codec:
    """About ratio * n elements in blocks of 64, drawn anew for each array from (seed, how many arrays came before).

    All ranks give the same seed. Payload: 4 bytes for each element (its value) and 4 for each block (its number).
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"random_k wants a ratio above 0 and up to 1, got {ratio}")
    streams.seed_checked(seed)

    def encode(x: Array, state: State) -> tuple[Payload, State]:
        blocks = -(-x.size // BLOCK)
        rng = streams.generator(seed, state)
        chosen = rng.choice(blocks, min(blocks, max(1, round(ratio * blocks))), replace=False, shuffle=False) if blocks else []
        drawn = np.sort(np.asarray(chosen, np.uint32))
        values = np.zeros((len(drawn), BLOCK), np.float32)
        places = _places(drawn, x.size)
        values.reshape(-1)[: places.size] = x[places]
        return (values, drawn), state + 1

    def keep(x: Array, memory: Array, state: State) -> tuple[Payload, State]:
        memory += x
        payload, state = encode(memory, state)
        memory[_places(payload[1], x.size)] = 0
        return payload, state

    def decode(payload: Payload, n: int) -> Array:
        return add(np.zeros(n, np.float32), payload, 1.0)

    def add(acc: Array, payload: Payload, weight: float) -> Array:
        places = _places(payload[1], acc.size)
        acc[places] += np.float32(weight) * payload[0].reshape(-1)[: places.size]
        return acc

    return Codec(f"randomk:{ratio:g}", encode, decode, init=lambda x: 0, summable=True, keep=keep, add=add)


def _places(blocks: Array, n: int) -> Array:
    """The elements of ascending blocks; only the last block of all can be shorter."""
    places = (blocks[:, None].astype(np.int64) * BLOCK + np.arange(BLOCK)).reshape(-1)
    return places[places < n]
