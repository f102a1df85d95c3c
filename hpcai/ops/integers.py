"""Sums of integers, which are exact in any order: f32 values as lanes on shared scales, and as fixed-point numbers.

*Lanes* are levels -limit..limit, stored as level + limit in u8 or u16. Each block of 256 elements has one scale, the same on all
P ranks. If P * 2 * limit fits into a lane, one addition of i32 adds four u8 lanes (two u16 lanes), and no lane overflows into
its neighbour. A *fixed-point* number is a whole number of units in i64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcai.ops import native
from hpcai.ops.blocks import BLOCK
from hpcai.ops.door import takes
from hpcai.xp import Array


@takes(tops="f32 -(-n//BLOCK)", x="f32 n", memory="f32 n", writes="tops memory")
def block_tops_into(tops: Array, x: Array, memory: Array) -> Array:
    """memory += x; tops = the largest magnitude of memory in each block, NaN if a value is not finite. Returns tops."""
    kernels: Any = native.kernels()
    if kernels is not None:
        kernels.block_tops(native.address(tops), native.address(x), native.address(memory), x.size)
        return tops
    with np.errstate(all="ignore"):
        memory += x
        largest = np.maximum.reduceat(np.abs(memory), np.arange(0, x.size, BLOCK)) if x.size else tops
    tops[:] = np.where(np.isfinite(largest), largest, np.float32(np.nan))
    return tops


@takes(
    lanes="L n",
    scales="f32 -(-n//BLOCK)",
    memory="f32 n",
    writes="lanes memory",
    where={"0 < 2 * limit < 256**L.itemsize": "a positive 2 * limit that fits into a lane"},
)
def encode_lanes_into(lanes: Array, scales: Array, memory: Array, limit: int) -> Array:
    """lanes = limit + round(memory / scale), clipped to 0..2 limit; the memory keeps the difference. Returns lanes."""
    kernels: Any = native.kernels()
    if kernels is not None:
        kernels.encode_lanes(
            lanes.itemsize, native.address(lanes), native.address(scales), native.address(memory), memory.size, limit
        )
        return lanes
    with np.errstate(all="ignore"):
        scale = np.repeat(scales, BLOCK)[: memory.size]
        y = np.rint(memory * np.where(scale > 0, np.float32(1) / scale, np.float32(0)))
        level = np.where(y > -limit, np.minimum(y, np.float32(limit)), np.float32(-limit))
        lanes[:] = (level + np.float32(limit)).astype(lanes.dtype)
        memory -= scale * level
    return lanes


@takes(
    out="f32 n",
    lanes="L n",
    scales="f32 -(-n//BLOCK)",
    writes="out",
    where={"min(limit, ranks) > 0 and 2 * limit * ranks < 256**L.itemsize": "a positive 2 * limit * ranks that fits into a lane"},
)
def decode_lanes_into(out: Array, lanes: Array, scales: Array, limit: int, ranks: int) -> Array:
    """out = the mean over `ranks` ranks, decoded from lanes that are summed over these ranks. Returns out."""
    offset, factor = ranks * limit, float(np.float32(1) / np.float32(ranks))
    kernels: Any = native.kernels()
    if kernels is not None:
        kernels.decode_lanes(
            lanes.itemsize, native.address(out), native.address(lanes), native.address(scales), out.size, offset, factor
        )
        return out
    unit = np.repeat(scales * np.float32(factor), BLOCK)[: out.size]
    np.multiply(unit, (lanes.astype(np.int32) - offset).astype(np.float32), out=out)
    return out


_UNIT = {"-1000 <= exponent <= 1000": "an exponent from -1000 to 1000"}


@takes(sums="i64 n", x="f32 n", writes="sums", where=_UNIT)
def add_fixed_into(sums: Array, x: Array, exponent: int) -> Array:
    """sums += x in units of 2**exponent, rounded to nearest even. |x| must be below 2**(exponent+62). Returns sums."""
    kernels: Any = native.kernels()
    if kernels is not None:
        kernels.add_fixed(native.address(sums), native.address(x), x.size, 2.0**-exponent)
    else:
        sums += np.rint(x * np.float64(2.0**-exponent)).astype(np.int64)
    return sums


@takes(out="f32 n", sums="i64 n", writes="out", where=_UNIT)
def from_fixed_into(out: Array, sums: Array, exponent: int) -> Array:
    """out = sums * 2**exponent, rounded to f32. Returns out."""
    kernels: Any = native.kernels()
    if kernels is not None:
        kernels.from_fixed(native.address(out), native.address(sums), out.size, 2.0**exponent)
    else:
        np.multiply(sums, np.float64(2.0**exponent), out=out, casting="same_kind")
    return out
