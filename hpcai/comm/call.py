"""A collective call in numbers, which ranks compare, and in words, which they show when they differ."""

from __future__ import annotations

import numpy as np

from hpcai.xp import CODES, Array, namespace

# The first five are the numbers of kernels/cpu/node.hpp.
KINDS = (
    "agree",
    "allreduce",
    "reduce_scatter",
    "allgather",
    "broadcast",
    "barrier",
    "exchange",
    "split",
    "empty",
    "leave",
    "alltoall",
    "node",
)
OPERATIONS = ("", "sum", "mean", "max", "min")
ALGORITHMS = ("auto", "node", "hierarchical", "ring", "halving_doubling", "mpi")
FOLDS = {"": 0, "sum": 0, "mean": 0, "max": 1, "min": 2}
BYTES = len(CODES)
SHOWN = 8
"""So many ranks are named."""


def key(rank: int, kind: str, x: Array, op: str, choice: int, algorithm: str, problem: Exception | None) -> tuple[int, ...]:
    """A call in numbers; those of two ranks differ if their calls do. See allreduce_fast in kernels/cpu/module.cpp.

    Of algorithms "auto" and "node" are the same: both are shared memory where it is there.
    """
    if problem is not None:
        return (0, rank, 0, 0, 0, 0, 0, 0)
    n, dtype, itemsize = (0, 0, 0) if x is None else (x.size, CODES.get(x.dtype, 16 + x.dtype.num), x.itemsize)
    way = 0 if algorithm == "node" else ALGORITHMS.index(algorithm)
    return (1, KINDS.index(kind), n, dtype, OPERATIONS.index(op), choice, itemsize, way)


def describe(kind: str, x: Array, op: str, choice: int, calls: int, algorithm: str = "auto") -> str:
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
    """Ranks in words, the first few by number."""
    shown = ", ".join(map(str, ranks[:SHOWN])) + (f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def array_problem(kind: str, x: Array, op: str) -> Exception | None:
    """What is wrong with the array or operation of a call, if anything."""
    if not isinstance(x, np.ndarray) and namespace(x) is np:
        return TypeError(f"{kind} wants a numpy or cupy array, got {type(x).__name__}")
    if op not in OPERATIONS:
        return ValueError(f"{kind}: unknown op {op!r}; there are sum, mean, max, min")
    if op and x.dtype not in CODES:
        return TypeError(f"{kind} knows f16, bf16, f32, f64, i32, i64; got {x.dtype}: convert with x.astype first")
    if x.dtype.hasobject:
        return TypeError(f"{kind} moves bytes and cannot move Python objects (dtype {x.dtype}); use exchange")
    if not (x.flags.c_contiguous and x.flags.writeable):
        return ValueError(f"{kind} works in place and wants a contiguous, writeable array; pass x.copy() or a view without gaps")
    return None
