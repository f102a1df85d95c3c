"""The C++ kernels behind their verbs, with arguments checked; numpy's reference where they were not built."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcai.ops import reference
from hpcai.xp import CODES, Array, accumulation_dtype

try:
    from hpcai import _native as _built
except ImportError:
    _built = None

_native: Any = _built

OPERATIONS = {"sum": 0, "max": 1, "min": 2}


def is_native() -> bool:
    """True when the C++ kernels are there."""
    return _native is not None


def kernels() -> Any:
    """The compiled module, or None where it was not built."""
    return _native


def lanes() -> str:
    """Which instructions the kernels use."""
    return _native.lanes()


def fold_into(acc: Array, x: Array, op: str) -> Array:
    """acc = acc OP x, elementwise, in place.

    Args:   acc, x: (n,) contiguous, not overlapping unless equal; x of f16, bf16, f32, f64, i32, i64; acc of the same dtype, or
            f32 where x has 16 bits. op: "sum", "max", "min"; a NaN on either side gives NaN.
    Returns: acc.
    Raises: TypeError (other dtypes), ValueError (shapes differ, not contiguous).
    Cost:   reads both, writes acc once: 12 bytes an element for f32.
    """
    _check(acc, x)
    if acc.dtype != accumulation_dtype(x.dtype):
        raise TypeError(f"fold_into wants an accumulator of {accumulation_dtype(x.dtype)} for {x.dtype}, got {acc.dtype}")
    if _native is None:
        return reference.fold_into(acc, x, op)
    _native.fold(CODES[x.dtype], OPERATIONS[op], address(acc), address(x), x.size)
    return acc


def cast_into(out: Array, x: Array) -> Array:
    """out = x, between f32 and f16 or bf16, rounded to nearest even. Shapes as `fold_into`; out and x do not overlap."""
    _check(out, x)
    pair = {out.dtype.itemsize, x.dtype.itemsize}
    if pair != {2, 4} or np.dtype(np.float32) not in (out.dtype, x.dtype):
        raise TypeError(f"cast_into goes between f32 and a 16-bit float, got {x.dtype} to {out.dtype}")
    if _native is None:
        return reference.cast_into(out, x)
    _native.cast(CODES[out.dtype], CODES[x.dtype], address(out), address(x), x.size)
    return out


def cast_keeping_into(out: Array, x: Array, memory: Array) -> Array:
    """out = x + memory in f16 or bf16, rounded to nearest even, and memory = what out leaves out, in one pass.

    out: (n,) f16 or bf16; x, memory: (n,) f32; contiguous, none overlapping. Returns out. Cost: 14 bytes an element.
    """
    _check(out, x)
    _check(x, memory)
    if out.dtype.itemsize != 2 or not x.dtype == memory.dtype == np.float32:
        raise TypeError(f"cast_keeping_into goes from f32 to a 16-bit float, got {x.dtype}, {memory.dtype} to {out.dtype}")
    if _native is None:
        return reference.cast_keeping_into(out, x, memory)
    _native.cast_keeping(CODES[out.dtype], address(out), address(x), address(memory), x.size)
    return out


def widen_scaled_into(out: Array, x: Array, weight: float, add: bool) -> Array:
    """out = weight * x, or out += weight * x. out: (n,) f32; x: (n,) f16 or bf16; contiguous. Returns out."""
    _check(out, x)
    if out.dtype != np.float32 or x.dtype.itemsize != 2:
        raise TypeError(f"widen_scaled_into goes from a 16-bit float to f32, got {x.dtype} to {out.dtype}")
    if _native is None:
        return reference.widen_scaled_into(out, x, weight, add)
    _native.widen_scaled(CODES[x.dtype], add, address(out), address(x), x.size, weight)
    return out


def divide_into(x: Array, divisor: int) -> Array:
    """x = x / divisor in place, for the mean; integers truncate towards zero. x: (n,) contiguous f32, f64, i32 or i64."""
    _check(x, x)
    if x.dtype.itemsize == 2:
        raise TypeError(f"divide_into wants f32, f64, i32 or i64, got {x.dtype}: divide before rounding to 16 bits")
    if _native is None:
        return reference.divide_into(x, divisor)
    _native.divide(CODES[x.dtype], address(x), divisor, x.size)
    return x


def fold_ranks_into(outs: list[int], xs: list[int], dtype: Any, op: str, start: int, stop: int) -> None:
    """Elements start..stop of all outs = those of all xs, folded in their order; outs may be xs.

    Addresses of contiguous arrays of one of the six dtypes, which the caller has checked. Cost: reads xs once, writes outs once.
    """
    _native.fold_ranks(CODES[np.dtype(dtype)], OPERATIONS[op], outs, xs, 1, start, stop)


def node(rank: int, size: int, desks: Array, timeout_s: float, crowded: bool) -> Any:
    """The node collectives of one rank on shared memory of size * desk_bytes() zeroed bytes; see hpcai.comm.node."""
    return _native.Node(rank, size, address(desks), timeout_s, crowded)


def desk_bytes() -> int:
    """How much shared memory each rank of a node needs for itself."""
    return _native.DESK_BYTES


def _check(out: Array, x: Array) -> None:
    if out.dtype not in CODES or x.dtype not in CODES:
        raise TypeError(f"no kernel for {out.dtype} and {x.dtype}; there is one for f16, bf16, f32, f64, i32, i64")
    if out.shape != x.shape or not (out.flags.c_contiguous and x.flags.c_contiguous):
        raise ValueError(f"kernels want contiguous arrays of one shape, got {out.shape} and {x.shape}")


def address(x: Array) -> int:
    """Where the array's bytes begin."""
    return x.__array_interface__["data"][0]
