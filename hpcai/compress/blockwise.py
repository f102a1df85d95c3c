"""Codecs on the block kernels of hpcai.ops.blocks; a payload is one buffer with scales, then levels."""

from __future__ import annotations

import numpy as np

from hpcai import ops
from hpcai.compress.codec import Codec, Payload, State, opened
from hpcai.ops import streams
from hpcai.ops.door import takes
from hpcai.xp import Array


def blockwise(form: str, stochastic: bool, seed: int) -> Codec:
    """Return a codec of format `form`. Its state counts the encoded arrays, so that different random bits round each array."""
    streams.seed_checked(seed)

    def size(n: int) -> int:
        return 4 * ops.block_count(n) + ops.packed_bytes(n, form)

    def parts(payload: Payload, x: Array) -> tuple[Array, Array]:
        """Return views of scales and levels in the payload of an array like x."""
        (said,), cut = opened(form, payload, (np.uint8, (size(x.size),)), into=x), 4 * ops.block_count(x.size)
        return said[:cut].view(np.float32), said[cut:]

    @takes(x="f32 n", memory="f32 n", writes="memory")
    def keyed(x: Array, memory: Array | None, state: State) -> tuple[Payload, State]:
        payload = (np.empty(size(x.size), np.uint8),)
        key = int(streams.sequence(seed, state).generate_state(1)[0]) if stochastic else None
        ops.encode_blocks_into.unchecked(*parts(payload, x), x, form, memory, key)
        return payload, state + 1

    def encode(x: Array, state: State) -> tuple[Payload, State]:
        return keyed(x, None, state)

    def decode(payload: Payload, n: int) -> Array:
        return put(np.empty(n, np.float32), payload, 1.0)

    @takes(out="f32 n", writes="out")
    def put(out: Array, payload: Payload, weight: float) -> Array:
        return ops.decode_blocks_into.unchecked(out, *parts(payload, out), form, weight)

    @takes(acc="f32 n", writes="acc")
    def add(acc: Array, payload: Payload, weight: float) -> Array:
        return ops.add_blocks_into.unchecked(acc, *parts(payload, acc), form, weight)

    return Codec(form, encode, decode, init=lambda x: 0, keep=keyed, add=add, put=put, cut=ops.BLOCK)
