"""Casts to 16-bit floats: half the bytes of f32, rounded to nearest even."""

from __future__ import annotations

import numpy as np

from hpcai import ops
from hpcai.compress.codec import Codec, Payload, State
from hpcai.xp import DTYPES, Array


def bf16() -> Codec:
    """8 bits of mantissa, f32's range. Payload: 2 bytes an element. Error at most 2^-9 of each value."""
    return _cast("bf16")


def fp16() -> Codec:
    """11 bits of mantissa; beyond 65504 a value becomes infinite, below 6e-8 zero. Payload: 2 bytes an element."""
    return _cast("f16")


def _cast(short: str) -> Codec:
    dtype = DTYPES[short]

    def encode(x: Array, state: State) -> tuple[Payload, State]:
        return (ops.cast_into(np.empty(x.shape, dtype), x),), state

    def decode(payload: Payload, n: int) -> Array:
        return ops.cast_into(np.empty(n, np.float32), payload[0])

    def keep(x: Array, memory: Array, state: State) -> tuple[Payload, State]:
        return (ops.cast_keeping_into(np.empty(x.shape, dtype), x, memory),), state

    def put(out: Array, payload: Payload, weight: float) -> Array:
        return ops.widen_scaled_into(out, payload[0], weight, add=False)

    def add(acc: Array, payload: Payload, weight: float) -> Array:
        return ops.widen_scaled_into(acc, payload[0], weight, add=True)

    return Codec("fp16" if short == "f16" else short, encode, decode, summable=True, keep=keep, add=add, put=put, cut=1)
