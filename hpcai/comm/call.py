"""A collective call in numbers, which ranks compare, and in words, which errors show when the calls differ."""

from __future__ import annotations

import functools
import math
import pickle
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpcai.comm.wire import Wire
from hpcai.environment import ALGORITHMS
from hpcai.errors import UsageError, counted
from hpcai.ops import native
from hpcai.xp import CODES, Array, bfloat16

NATIVE_KINDS = ("agree", "allreduce", "reduce_scatter", "allgather", "broadcast", "alltoall")
"""Kinds that the kernels know too, by the same numbers."""

KINDS = (
    *NATIVE_KINDS,
    "barrier",
    "allgather_object",
    "split",
    "symmetric_empty",
    "leave",
    "split_by_node",
)
REDUCING = ("allreduce", "reduce_scatter")
OPERATIONS = ("", "sum", "mean", "max", "min")
FOLDS = {"": native.OPERATIONS["sum"], "mean": native.OPERATIONS["sum"], **native.OPERATIONS}
BYTES = len(CODES)
FIELDS = ("valid", "kind", "count", "dtype", "operation", "choice", "shape", "algorithm")
"""What the numbers of a key stand for, in order."""

LETTERS = "?bBhHiIlLqQefdFD"
"""The dtypes, by numpy's letters, beside bf16 whose arrays may go the short way (kernels/cpu/short_way.cpp)."""

SHAPE_FACTOR, SHAPE_BITS = 1000003, 61
PLACE_BITS = 40
"""A symmetric array has fewer than 2**40 bytes."""

SHOWN = 8
"""How many ranks a message names at most."""


def key(
    rank: int, kind: str, x: Array | None, op: str, choice: int, algorithm: str, problem: Exception | None
) -> tuple[int, ...]:
    """A call in numbers; those of two ranks differ if their calls do. See kernels/cpu/short_way.cpp.

    The algorithms "auto" and "node" have the same number: both are shared memory if the ranks have it.
    """
    if problem is not None:
        return (0, rank, 0, 0, 0, 0, 0, 0)
    n, dtype, shape = (0, 0, 0) if x is None else (x.size, dtype_code(x.dtype), shape_code(x.shape))
    way = 0 if algorithm == "node" else ALGORITHMS.index(algorithm)
    return (1, KINDS.index(kind), n, dtype, OPERATIONS.index(op), choice, shape, way)


@functools.lru_cache(maxsize=256)
def dtype_code(dtype: np.dtype) -> int:
    """The number of a dtype, equal on all ranks; byte order and fields count."""
    return CODES[dtype] if dtype in CODES else 256 + zlib.crc32(repr(dtype).encode())


if (kernels := native.kernels()) is not None:
    kernels.prepare_short_way(bfloat16, {np.dtype(letter).num: dtype_code(np.dtype(letter)) for letter in LETTERS})


def shape_code(shape: tuple[int, ...]) -> int:
    """An array's shape as one number; 0 for one dimension, since the length is compared too."""
    if len(shape) == 1:
        return 0
    code = len(shape) + 1
    for length in shape:
        code = (code * SHAPE_FACTOR + length) % (1 << 64)
    return code % (1 << SHAPE_BITS)


def describe(kind: str, x: Array | None, op: str, choice: int, calls: int, algorithm: str = "auto") -> str:
    """A call in words; `calls` counts this one and those before it."""
    if kind == "leave":
        return "left (its program ended)"
    parts = [kind]
    if x is not None:
        parts.append(f"of {x.dtype}{list(x.shape)}")
    if op:
        parts.append(f"op {op}")
    if choice:
        parts.append(f"choice {choice}")
    if algorithm != "auto":
        parts.append(f"by {algorithm}")
    return " ".join(parts) + f" (call {calls})"


def some(ranks: list[int]) -> str:
    """Ranks in words; numbers beyond the first SHOWN are only counted."""
    shown = ", ".join(map(str, ranks[:SHOWN])) + (f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def array_problem(kind: str, x: Array, op: str) -> Exception | None:
    """The error of a call whose array or operation is invalid, else None."""
    if (problem := memory_problem(kind, x)) is not None:
        return problem
    if kind in REDUCING:
        if not isinstance(op, str) or op not in OPERATIONS[1:]:
            return ValueError(f"{kind}: unknown op {op!r}; there are sum, mean, max, min")
        if x.dtype == bool and op in ("sum", "mean"):
            return TypeError(f'{kind} of bool wants op "max" (or) or "min" (and); to count, convert by x.astype(np.int64) first')
        if x.dtype not in CODES and x.dtype != bool:
            return TypeError(f"{kind} supports f16, bf16, f32, f64, i32, i64; got {x.dtype}: convert with x.astype first")
    if not x.flags.writeable:
        return ValueError(f"{kind} works in place and wants a writeable array; pass x.copy()")
    return None


def rows_problem(kind: str, x: Array, size: int) -> Exception | None:
    """The error of an alltoall whose array has not a row for each rank, else None."""
    if kind == "alltoall" and (x.ndim == 0 or len(x) != size):
        return ValueError(f"alltoall wants a row for each of {counted(size, 'rank')}, got shape {x.shape}")
    return None


def memory_problem(kind: str, x: Array) -> Exception | None:
    """The error of an array that cannot be sent as plain bytes, else None."""
    if not isinstance(x, np.ndarray):
        return TypeError(f"{kind} wants a numpy array, got {type(x).__module__}.{type(x).__qualname__}")
    if type(x) not in (np.ndarray, np.memmap):  # a mask or other rules for its elements would be lost
        return TypeError(f"{kind} wants a plain numpy array, got {type(x).__qualname__}; pass x.view(np.ndarray)")
    if x.dtype.hasobject:
        return TypeError(f"{kind} moves bytes and cannot move Python objects (dtype {x.dtype}); use allgather_object")
    if not x.flags.c_contiguous:
        return ValueError(f"{kind} works in place and wants a contiguous array; pass x.copy() or a view without gaps")
    return None


def moved(flat: Array, op: str) -> Array:
    """The array that is sent in place of `flat`: kernels reduce aligned numbers only."""
    if op and flat.dtype == bool:  # as numbers "max" is or, and "min" is and
        return flat.astype(np.int32)
    return flat.copy() if op and not flat.flags.aligned else flat


def choice_problem(kind: str, root: Any, algorithm: Any, wire: Wire, in_memory: bool) -> Exception | None:
    """The error of a collective whose root or algorithm is invalid, else None. in_memory: whether the ranks share memory."""
    if not whole(root) or not 0 <= root < wire.size:
        return ValueError(f"{kind}: root {root!r} is not one of {counted(wire.size, 'rank')}, 0 to {wire.size - 1}")
    known = [name for name in ALGORITHMS if kind == "allreduce" or name in ("auto", "node", "ring")]
    if not isinstance(algorithm, str) or algorithm not in known:
        return ValueError(f"{kind}: unknown algorithm {algorithm!r}; there are {', '.join(known)}")
    if algorithm == "node" and not in_memory and wire.size > 1:
        return ValueError('algorithm="node" needs ranks that share memory, and the native kernels; use "auto" or "ring"')
    if algorithm == "mpi" and not hasattr(wire, "library_allreduce"):
        return ValueError(f'algorithm="mpi" needs MPI; this communicator runs on {type(wire).__name__}')
    return None


def whole(value: Any) -> bool:
    """True for integers of Python or numpy; False for bools, which are a mistake where a rank is wanted."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def peer_problem(kind: str, peer: Any, lane: Any, rank: int, size: int) -> Exception | None:
    """The error of a message whose other rank or lane is invalid, else None."""
    if not whole(peer) or not 0 <= peer < size or peer == rank:
        others = "there are no others" if size == 1 else f"the others are 0 to {size - 1}"
        return ValueError(f"{kind} wants the number of another rank, got {peer!r}; this is rank {rank} of {size}, {others}")
    if not whole(lane) or lane not in (0, 1):
        return ValueError(f"{kind} has lanes 0 and 1, got {lane!r}")
    return None


def split_problem(color: Any, order: Any) -> Exception | None:
    """The error of a split whose color (None, a bool or an integer from 0 that MPI can carry) or key is invalid, else None."""
    if color is not None and not (isinstance(color, (bool, np.bool_)) or (whole(color) and 0 <= color < 1 << 31)):
        return ValueError(f"split wants a color from 0 to 2**31 - 1, or None for a rank that wants no group, got {color!r}")
    if order is not None and not (whole(order) and -(1 << 31) <= order < 1 << 31):
        return ValueError(f"split wants a whole number of 32 bits as key, or None for the rank, got {order!r}")
    return None


def empty_problem(shape: Any, dtype: Any) -> Exception | None:
    """The error of a symmetric array whose shape or dtype is invalid, else None."""
    try:
        kind = np.dtype(dtype)
    except TypeError:
        return TypeError(f"symmetric_empty wants a dtype, got {dtype!r}")
    if kind.hasobject or kind.itemsize == 0 or kind.subdtype is not None:
        return TypeError(f"symmetric_empty makes arrays of numbers and other fixed bytes, got dtype {kind}")
    lengths = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    if not all(whole(length) for length in lengths):
        return TypeError(f"symmetric_empty wants a shape of whole numbers, got {shape!r}")
    if any(length < 0 for length in lengths) or math.prod(lengths) * kind.itemsize >= 1 << PLACE_BITS or len(lengths) > 32:
        return ValueError(
            f"symmetric_empty wants lengths from 0, less than 2**{PLACE_BITS} bytes and 32 dimensions at most, got {shape!r}"
        )
    return None


def pickled(value: Any, size: int) -> tuple[bytes, Exception | None]:
    """A value as bytes for an exchange among `size` ranks, and the error if it cannot be exchanged, else None."""
    try:
        raw = pickle.dumps(value)
    except Exception as error:  # whatever the value's own way of being pickled raises
        return b"", UsageError(f"allgather_object wants a value that pickle can carry, got {type(value).__qualname__}: {error}")
    if len(raw) * size >= 1 << 31:
        return b"", UsageError(f"allgather_object takes 2 GiB over all ranks at most, got {len(raw)} bytes of one: use arrays")
    return raw, None


def unpickled(raw: bytes, rank: int) -> Any:
    """The value in the bytes that `rank` has pickled."""
    try:
        return pickle.loads(raw)
    except Exception as error:
        raise UsageError(f"the value that rank {rank} gave to allgather_object cannot be unpickled here: {error}") from error
