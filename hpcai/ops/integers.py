"""Sums of integers, which are exact in any order: f32 values as lanes on shared scales, and as fixed-point numbers.

*Lanes* are levels -limit..limit, stored as level + limit in u8 or u16, with a scale for each block of 256 elements that all
ranks share. With P * 2 * limit below the lane's range a sum of i32 adds four u8 (two u16) at once, and no lane overflows into its
neighbour. *Fixed point* is a whole number of units in i64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcai.ops import native
from hpcai.ops.blocks import BLOCK, block_count
from hpcai.xp import Array


def block_tops_into(tops: Array, x: Array, memory: Array) -> Array:
    """memory += x, and the largest magnitude of each block, NaN where something is not finite.

    Args: tops: (ceil(n/256),) f32; x, memory: (n,) f32, contiguous. Returns: tops.
    """
    _check(x, memory, tops)
    kernels: Any = native.kernels()
    if kernels is not None:
        kernels.block_tops(native.address(tops), native.address(x), native.address(memory), x.size)
        return tops
    with np.errstate(all="ignore"):
        memory += x
        largest = np.maximum.reduceat(np.abs(memory), np.arange(0, x.size, BLOCK)) if x.size else tops
    tops[:] = np.where(np.isfinite(largest), largest, np.float32(np.nan))
    return tops


def encode_lanes_into(lanes: Array, scales: Array, memory: Array, limit: int) -> Array:
    """lanes = limit + round(memory / scale), within 0..2 limit; what they do not say stays in the memory.

    Args: lanes: (n,) u8 or u16; scales: (ceil(n/256),) f32; memory: (n,) f32. Returns: lanes.
    """
    _check(memory, memory, scales, lanes)
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


def decode_lanes_into(out: Array, lanes: Array, scales: Array, limit: int, ranks: int) -> Array:
    """The mean over `ranks` that lanes summed over so many ranks say. Shapes as `encode_lanes_into`. Returns: out."""
    _check(out, out, scales, lanes)
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


def add_fixed_into(sums: Array, x: Array, exponent: int) -> Array:
    """sums += x in units of 2**exponent, rounded to nearest even. sums: (n,) i64; x: (n,) f32, |x| below 2**(exponent+62)."""
    _check_fixed(sums, x)
    kernels: Any = native.kernels()
    if kernels is not None:
        kernels.add_fixed(native.address(sums), native.address(x), x.size, 2.0**-exponent)
    else:
        sums += np.rint(x * np.float64(2.0**-exponent)).astype(np.int64)
    return sums


def from_fixed_into(out: Array, sums: Array, exponent: int) -> Array:
    """out (n,) f32 = sums (n,) i64, which are in units of 2**exponent."""
    _check_fixed(sums, out)
    kernels: Any = native.kernels()
    if kernels is not None:
        kernels.from_fixed(native.address(out), native.address(sums), out.size, 2.0**exponent)
    else:
        np.multiply(sums, np.float64(2.0**exponent), out=out, casting="same_kind")
    return out


def _check(x: Array, memory: Array, per_block: Array, lanes: Array | None = None) -> None:
    if x.dtype != np.float32 or x.ndim != 1 or memory.shape != x.shape or memory.dtype != x.dtype:
        raise TypeError(
            f"lanes are made of flat f32 arrays of one length, got {x.dtype}{list(x.shape)}: convert with x.astype first"
        )
    if per_block.shape != (block_count(x.size),) or per_block.dtype != np.float32:
        raise ValueError(f"{x.size} elements want {block_count(x.size)} f32 scales, got {per_block.dtype}{list(per_block.shape)}")
    if lanes is not None and (lanes.shape != x.shape or lanes.dtype not in (np.uint8, np.uint16)):
        raise ValueError(f"{x.size} elements want as many lanes of u8 or u16, got {lanes.dtype}{list(lanes.shape)}")
    _contiguous(x, memory, per_block, *(() if lanes is None else (lanes,)))


def _check_fixed(sums: Array, x: Array) -> None:
    if sums.dtype != np.int64 or x.dtype != np.float32 or sums.shape != x.shape or x.ndim != 1:
        raise TypeError(
            f"fixed point is flat i64 beside as many f32, got {sums.dtype}{list(sums.shape)} and {x.dtype}{list(x.shape)}"
        )
    _contiguous(sums, x)


def _contiguous(*arrays: Array) -> None:
    if not all(array.flags.c_contiguous for array in arrays):
        raise ValueError("kernels want contiguous arrays")
