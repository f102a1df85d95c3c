"""Random blocks of the array, the same on all ranks, so that an all-reduce can sum payloads.

Source: Stich, Cordonnier & Jaggi, arXiv:1809.07599.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcai.compress.codec import Codec, Payload, State, opened
from hpcai.ops import door, ranges, streams
from hpcai.ops.door import takes
from hpcai.xp import Array

BLOCK = 64


def random_k(ratio: float, *, seed: int = 0) -> Codec:
    """About ratio * n elements in blocks of 64, drawn anew for each array from (seed, number of earlier arrays).

    seed: must be the same on all ranks. Payload: 4 bytes for each sent element (its value) and 4 for each block (its number).
    """
    ranges.share(random_k, ratio=ratio)
    streams.seed_checked(seed)
    name = f"randomk:{ratio:g}"

    def wanted(blocks: int) -> int:
        return min(blocks, max(1, round(ratio * blocks)))

    def said(payload: Payload, into: Array) -> tuple[Array, Array]:
        """Return the values and the indices of their elements."""
        blocks = -(-into.size // BLOCK)
        values, drawn = opened(name, payload, (np.float32, (wanted(blocks), BLOCK)), (np.uint32, (wanted(blocks),)), into=into)
        door.refuse_outside(name, "block", drawn, blocks)
        places = _places(drawn, into.size)
        return values.reshape(-1)[: places.size], places

    @takes(x="f32 n")
    def encode(x: Array, state: State) -> tuple[Payload, State]:
        blocks = -(-x.size // BLOCK)
        rng = streams.generator(seed, state)
        chosen: Any = rng.choice(blocks, wanted(blocks), replace=False, shuffle=False) if blocks else []
        drawn = np.sort(np.asarray(chosen, np.uint32))
        values = np.zeros((len(drawn), BLOCK), np.float32)
        places = _places(drawn, x.size)
        values.reshape(-1)[: places.size] = x[places]
        return (values, drawn), state + 1

    @takes(x="f32 n", memory="f32 n", writes="memory")
    def keep(x: Array, memory: Array, state: State) -> tuple[Payload, State]:
        memory += x
        payload, state = encode(memory, state)
        memory[_places(payload[1], x.size)] = 0
        return payload, state

    def decode(payload: Payload, n: int) -> Array:
        return add(np.zeros(n, np.float32), payload, 1.0)

    @takes(acc="f32 n", writes="acc")
    def add(acc: Array, payload: Payload, weight: float) -> Array:
        values, places = said(payload, acc)
        acc[places] += np.float32(weight) * values
        return acc

    return Codec(name, encode, decode, init=lambda x: 0, summable=True, keep=keep, add=add)


def _places(blocks: Array, n: int) -> Array:
    """Return the indices of the elements of ascending blocks; only the array's last block can be shorter."""
    places = (blocks[:, None].astype(np.int64) * BLOCK + np.arange(BLOCK)).reshape(-1)
    return places[places < n]
