"""The C++ kernels behind their verbs, with checked arguments; where the kernels are not built, numpy's reference runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcai.ops import reference
from hpcai.ops.door import takes
from hpcai.xp import CODES, Array

try:
    from hpcai import _native as _built
except ImportError:
    _built = None

_native: Any = _built

OPERATIONS = {"sum": 0, "max": 1, "min": 2}
F32 = np.dtype(np.float32)


def is_native() -> bool:
    """Return whether the C++ kernels are built."""
    return _native is not None


def kernels() -> Any:
    """Return the compiled module, or None if it is not built."""
    return _native


def lanes() -> str:
    """Return the name of the vector instructions that the kernels use."""
    return _native.lanes() if is_native() else "numpy's, as the kernels are not built"


@takes(
    acc="A *",
    x="B *",
    writes="acc",
    same="acc x",
    where={
        "op in OPERATIONS": "op to be sum, max or min",
        "A == (F32 if B.itemsize == 2 else B)": "acc of x's dtype, or of f32 if x has 16-bit floats",
    },
)
def fold_into(acc: Array, x: Array, op: str) -> Array:
    """acc = acc OP x, elementwise, in place; acc may be x.

    op: "sum", "max" or "min"; NaN in either array gives NaN. Returns acc. Cost: reads both arrays and writes acc once: 12 bytes
    an element for f32.
    """
    if _native is None:
        return reference.fold_into(acc, x, op)
    _native.fold(CODES[x.dtype], OPERATIONS[op], address(acc), address(x), x.size)
    return acc


@takes(
    out="A *",
    x="B *",
    writes="out",
    where={"A.itemsize + B.itemsize == 6 and F32 in (A, B)": "one array of f32 and one of f16 or bf16"},
)
def cast_into(out: Array, x: Array) -> Array:
    """out = x, cast between f32 and f16 or bf16, rounded to nearest even. Returns out."""
    if _native is None:
        return reference.cast_into(out, x)
    _native.cast(CODES[out.dtype], CODES[x.dtype], address(out), address(x), x.size)
    return out


@takes(out="f16|bf16 *", x="f32 *", memory="f32 *", writes="out memory")
def cast_keeping_into(out: Array, x: Array, memory: Array) -> Array:
    """out = x + memory in f16 or bf16, rounded to nearest even, and memory = x + memory - out, in one pass.

    Returns out. Cost: 14 bytes an element.
    """
    if _native is None:
        return reference.cast_keeping_into(out, x, memory)
    _native.cast_keeping(CODES[out.dtype], address(out), address(x), address(memory), x.size)
    return out


@takes(out="f32 *", x="f16|bf16 *", writes="out")
def widen_scaled_into(out: Array, x: Array, weight: float, add: bool) -> Array:
    """out = weight * x, or out += weight * x if `add`. Returns out."""
    if _native is None:
        return reference.widen_scaled_into(out, x, weight, add)
    _native.widen_scaled(CODES[x.dtype], add, address(out), address(x), x.size, weight)
    return out


@takes(x="f32|f64|i32|i64 *", writes="x", where={"0 < divisor < 2**31": "a divisor from 1 to below 2**31"})
def divide_into(x: Array, divisor: int) -> Array:
    """x = x / divisor in place, for means; integers truncate towards zero. Divide before rounding to 16 bits. Returns x."""
    if _native is None:
        return reference.divide_into(x, divisor)
    _native.divide(CODES[x.dtype], address(x), divisor, x.size)
    return x


def fold_ranks_into(outs: list[int], xs: list[int], dtype: Any, op: str, start: int, stop: int) -> None:
    """Elements start..stop of every array in outs = these elements of all arrays in xs, folded in order; outs may be xs.

    outs, xs: addresses of contiguous arrays of one of the six dtypes; the caller has checked them. Cost: reads xs once, writes
    outs once.
    """
    _native.fold_ranks(CODES[np.dtype(dtype)], OPERATIONS[op], outs, xs, 1, start, stop)


def node(rank: int, size: int, desks: Array, timeout_s: float, crowded: bool) -> Any:
    """Return the node collectives of one rank, on size * desk_bytes() zeroed bytes of shared memory.

    See hpcai.comm.split_by_node().
    """
    return _native.Node(rank, size, address(desks), timeout_s, crowded)


def desk_bytes() -> int:
    """Return the bytes of shared memory that `node` needs for each rank."""
    return _native.DESK_BYTES


def address(x: Array) -> int:
    """Return the address of the array's first byte."""
    return x.__array_interface__["data"][0]
