"""Codecs on the block kernels of hpcai.ops.blocks: scales and levels in one buffer."""

from __future__ import annotations

import numpy as np

from hpcai import ops
from hpcai.compress.codec import Codec, Payload, State
from hpcai.ops import streams
from hpcai.xp import Array


def blockwise(form: str, stochastic: bool, seed: int) -> Codec:
    """A codec of format `form`; its state counts the arrays encoded so far, so that each is rounded by other random bits."""
    streams.seed_checked(seed)

    def empty(n: int) -> Payload:
        return (np.empty(4 * ops.block_count(n) + ops.packed_bytes(n, form), np.uint8),)

    def parts(payload: Payload, n: int) -> tuple[Array, Array]:
        cut = 4 * ops.block_count(n)
        return payload[0][:cut].view(np.float32), payload[0][cut:]

    def keyed(x: Array, memory: Array | None, state: State) -> tuple[Payload, State]:
        payload = empty(x.size)
        key = int(streams.sequence(seed, state).generate_state(1)[0]) if stochastic else None
        ops.encode_blocks_into(*parts(payload, x.size), x, form, memory, key)
        return payload, state + 1

    def encode(x: Array, state: State) -> tuple[Payload, State]:
        return keyed(x, None, state)

    def decode(payload: Payload, n: int) -> Array:
        return put(np.empty(n, np.float32), payload, 1.0)

    def put(out: Array, payload: Payload, weight: float) -> Array:
        return ops.decode_blocks_into(out, *parts(payload, out.size), form, weight)

    def add(acc: Array, payload: Payload, weight: float) -> Array:
        return ops.add_blocks_into(acc, *parts(payload, acc.size), form, weight)

    return Codec(form, encode, decode, init=lambda x: 0, keep=keyed, add=add, put=put, cut=ops.BLOCK)
