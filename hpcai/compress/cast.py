"""Casts to 16-bit floats: half the bytes of f32, rounded to nearest even."""

from __future__ import annotations

import numpy as np

from hpcai import ops
from hpcai.compress.codec import Codec, Payload, State, opened
from hpcai.ops.door import takes
from hpcai.xp import DTYPES, Array


def bf16() -> Codec:
    """Cast to bfloat16: 8 bits of mantissa, f32's range. Payload: 2 bytes an element. Error at most 2^-9 of each value."""
    return _cast("bf16")


def fp16() -> Codec:
    """Cast to IEEE half precision: 11 bits of mantissa. Payload: 2 bytes an element.

    Magnitudes beyond 65504 become infinite, those far below 6e-8 become zero.
    """
    return _cast("f16")


def _cast(short: str) -> Codec:
    dtype, name = DTYPES[short], "fp16" if short == "f16" else short

    def said(payload: Payload, into: Array) -> Array:
        return opened(name, payload, (dtype, into.shape), into=into)[0]

    @takes(x="f32 n")
    def encode(x: Array, state: State) -> tuple[Payload, State]:
        return (ops.cast_into.unchecked(np.empty(x.size, dtype), x),), state

    def decode(payload: Payload, n: int) -> Array:
        out = np.empty(n, np.float32)
        return ops.cast_into.unchecked(out, said(payload, out))

    @takes(x="f32 n", memory="f32 n", writes="memory")
    def keep(x: Array, memory: Array, state: State) -> tuple[Payload, State]:
        return (ops.cast_keeping_into.unchecked(np.empty(x.size, dtype), x, memory),), state

    @takes(out="f32 n", writes="out")
    def put(out: Array, payload: Payload, weight: float) -> Array:
        return ops.widen_scaled_into.unchecked(out, said(payload, out), weight, add=False)

    @takes(acc="f32 n", writes="acc")
    def add(acc: Array, payload: Payload, weight: float) -> Array:
        return ops.widen_scaled_into.unchecked(acc, said(payload, acc), weight, add=True)

    return Codec(name, encode, decode, summable=True, keep=keep, add=add, put=put, cut=1)
