"""The communicator: ranks, and the collectives among them, checked at this door and then handed to an algorithm.

Every collective first compares what the ranks are about to do (kind, length, dtype, operation, and how many came before). A
difference is an error on all of them that shows both sides, where plain MPI would hang or return garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from hpcai.comm import ring, schedule
from hpcai.comm.wire import Wire
from hpcai.errors import HpcaiError, RankMismatch
from hpcai.xp import CODES, Array, namespace

T = TypeVar("T")

KINDS = ("leave", "allreduce", "reduce_scatter", "allgather", "broadcast", "barrier", "exchange", "split")
OPERATIONS = ("", "sum", "mean", "max", "min")
ALGORITHMS = ("ring", "mpi")


class Communicator:
    """A group of ranks. `hpcai.init()` gives the one of all ranks; `split` makes smaller ones.

    >>> from hpcai.comm import threads
    >>> def program(comm):
    ...     x = np.full(3, comm.rank + 1.0)
    ...     return comm.allreduce(x).tolist()
    >>> threads.run(2, program)
    [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """

    def __init__(self, wire: Wire):
        self.wire = wire
        self.rank, self.size = wire.rank, wire.size
        self._calls = 0
        self._node: Communicator | None = None

    def __repr__(self) -> str:
        return f"Communicator(rank={self.rank}, size={self.size}, wire={type(self.wire).__name__})"

    # Groups and memory.

    @property
    def node(self) -> Communicator:
        """The ranks that share this rank's memory, as a communicator. Collective at its first use."""
        if self._node is None:
            made = self.split(self.wire.node_color())
            assert made is not None
            self._node = made
        return self._node

    def split(self, color: int | None, key: int | None = None) -> Communicator | None:
        """A communicator of the ranks with the same `color` (>= 0), ordered by (key, rank).

        Collective over this communicator. A rank with color None gets None. Key: the rank, where none is given.
        """
        self._agree("split")
        wire = self.wire.split(color, self.rank if key is None else key)
        return None if wire is None else Communicator(wire)

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float32) -> Array:
        """An uninitialised array for use in collectives, of this shape and dtype, owned by the caller."""
        return np.empty(shape, dtype)

    def chunk(self, n: int, rank: int | None = None) -> slice:
        """The share of `rank` (default: this one) in an array of n elements: what `reduce_scatter` leaves with it."""
        return schedule.split(n, self.size, self.rank if rank is None else rank)

    # Collectives on arrays.

    def allreduce(self, x: Array, op: str = "sum", *, algorithm: str = "ring") -> Array:
        """Reduce `x` over all ranks, in place; every rank gets the same bytes, and gets them again from the same input.

        Args:   x: contiguous array of any shape; f16, bf16, f32, f64, i32 or i64; equal shape and dtype on all ranks.
                op: "sum", "mean", "max", "min". 16-bit values are summed in f32 and rounded once; integer means truncate.
                algorithm: "ring" (ours), or "mpi" for the library's own MPI_Allreduce.
        Returns: x.
        Raises: TypeError (dtype, named), ValueError (not contiguous, unknown op), RankMismatch (ranks disagree).
        Cost:   2(P-1)/P n elements sent per rank, in messages of at most 1 MiB.
        """
        problem = (
            None
            if algorithm in ALGORITHMS
            else ValueError(f"allreduce: unknown algorithm {algorithm!r}; there are {', '.join(ALGORITHMS)}")
        )
        flat = self._door("allreduce", x, op, int(algorithm == "mpi"), problem)
        if self.size > 1 and flat.size:
            if algorithm == "ring":
                ring.allreduce(flat, self.wire, op)
            else:
                self._library_allreduce(flat, op)
        return x

    def reduce_scatter(self, x: Array, op: str = "sum") -> Array:
        """Reduce `x` over all ranks and keep only this rank's chunk: returns the view `x.reshape(-1)[comm.chunk(x.size)]`.

        The rest of `x` is overwritten with partial results. Arguments and errors as `allreduce`; half its cost.
        """
        flat = self._door("reduce_scatter", x, op)
        return ring.reduce_scatter(flat, self.wire, op) if self.size > 1 else flat

    def allgather(self, x: Array) -> Array:
        """Fill `x`, of which each rank has written its own chunk (`comm.chunk(x.size)`), with everyone's chunks, in place.

        The inverse of `reduce_scatter`: both in turn are an allreduce. Row r of a (size, k) array is rank r's chunk.
        Any dtype, contiguous. Returns x.
        """
        flat = self._door("allgather", x)
        if self.size > 1:
            ring.allgather(flat, self.wire)
        return x

    def broadcast(self, x: Array, root: int = 0) -> Array:
        """Copy `x` from rank `root` to all ranks, in place. Any dtype, contiguous, equal shape and dtype on all. Returns x."""
        problem = None if 0 <= root < self.size else ValueError(f"broadcast: root {root} is not one of {self.size} ranks")
        flat = self._door("broadcast", x, choice=root, problem=problem)
        if self.size > 1:
            ring.broadcast(flat.view(np.uint8), self.wire, root)
        return x

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self._agree("barrier")

    # Agreement on small Python values.

    def exchange(self, value: T) -> list[T]:
        """Every rank's `value` (small, picklable), in rank order, on all ranks."""
        self._agree("exchange")
        return self.wire.exchange(value)

    def on_root(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 only; every rank gets its (picklable) result, or raises its HpcaiError or OSError.

        So a file is read or written once, and a failure is everyone's failure, not a hang.
        """
        outcome: Any = None
        if self.rank == 0:
            try:
                outcome = (work(), None)
            except (HpcaiError, OSError) as error:
                outcome = (None, error)
        result, failure = self.exchange(outcome)[0]
        if failure is not None:
            raise failure
        return result

    def leave(self) -> None:
        """Say that this rank calls no more collectives. Raises RankMismatch if another rank still waits in one."""
        self._agree("leave")

    # The door.

    def _door(self, kind: str, x: Array, op: str = "", choice: int = 0, problem: Exception | None = None) -> Array:
        """Check one array argument here and against the other ranks; returns it flat."""
        problem = problem or _array_problem(kind, x, op)
        self._agree(kind, x, op, choice, problem)
        return x.reshape(-1)

    def _agree(self, kind: str, x: Array = None, op: str = "", choice: int = 0, problem: Exception | None = None) -> None:
        """Compare this call with the other ranks'; all raise if they differ or if one of them has a `problem`."""
        self._calls += 1
        if self.size > 1:
            if problem is None:
                n, dtype = (0, 0) if x is None else (x.size, CODES.get(x.dtype, 16 + x.dtype.num))
                key = (1, self._calls, KINDS.index(kind), n, dtype, OPERATIONS.index(op), choice)
            else:
                key = (0, self._calls, KINDS.index(kind), self.rank, 0, 0, 0)
            if not self.wire.agree(key):
                mine = f"{kind}, which failed there: {problem}" if problem else _describe(kind, x, op, choice, self._calls)
                self._disagree(mine, problem)
        if problem is not None:
            raise problem

    def _disagree(self, mine: str, problem: Exception | None) -> None:
        calls = self.wire.exchange(mine)
        if problem is None:
            sides = {text: [r for r, other in enumerate(calls) if other == text] for text in dict.fromkeys(calls)}
            shown = "; ".join(f"{_ranks(ranks)}: {text}" for text, ranks in sides.items())
            raise RankMismatch(f"ranks disagree in a collective. {shown}. All ranks must make the same calls in the same order.")

    def _library_allreduce(self, flat: Array, op: str) -> None:
        library = getattr(self.wire, "library_allreduce", None)
        if library is None:
            raise ValueError(f'algorithm="mpi" needs MPI; this communicator runs on {type(self.wire).__name__}')
        library(flat, op)


def _describe(kind: str, x: Array, op: str, choice: int, calls: int) -> str:
    if kind == "leave":
        return "left (its program ended)"
    parts = [kind]
    if x is not None:
        parts.append(f"of {x.dtype}{list(x.shape)}")
    if op:
        parts.append(f"op {op}")
    if choice:
        parts.append(f"choice {choice}")
    return " ".join(parts) + f" (call {calls})"


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _array_problem(kind: str, x: Array, op: str) -> Exception | None:
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
