"""The communicator: a group of ranks and its collectives. Each call is checked here and then handed to an algorithm.

Every collective first compares the calls of the ranks (kind, shape, dtype, operation, root and algorithm). A difference is an
error on all ranks that shows both sides, where plain MPI would hang or return garbage.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from hpcai.comm import call, message, select
from hpcai.comm.algorithms import hierarchical, pairwise, ring, schedule
from hpcai.comm.algorithms.table import ALGORITHMS
from hpcai.comm.background import Deferred, Request, of_this_thread
from hpcai.comm.diagnosis import stacks, stall
from hpcai.comm.door import Door, alone
from hpcai.comm.wire import Pending, Wire
from hpcai.comm.wires import node, ulfm
from hpcai.errors import HpcaiError, RankFailed, RankMismatch
from hpcai.xp import CODES, Array

T = TypeVar("T")


def _not_here(kind: str, x: Array, op: str, root: int) -> int:
    """The short way of ranks that do not share memory."""
    return node.NOT_HERE


@stacks.communicator
class Communicator:
    """A group of ranks. `hpcai.init()` gives the one of all ranks; `split` makes smaller ones.

    A communicator belongs to the thread that made it. Calls raise UsageError on other threads, in a forked child, within another
    call (as from a signal handler), and while a `Background` carries this thread's calls. What needs no other rank (rank, size,
    chunk) never does. An invalid argument of a collective on one rank raises its error there, and RankMismatch on the others.

    >>> from hpcai.comm import threads
    >>> def program(comm):
    ...     x = np.full(3, comm.rank + 1.0)
    ...     return comm.allreduce(x).tolist()
    >>> threads.run(2, program)
    [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """

    def __init__(self, wire: Wire, parent: Communicator | None = None):
        self.wire = wire
        self.rank, self.size = wire.rank, wire.size
        self._calls = self._splits = 0
        self._memory: node.Node | None = None
        self.path: tuple[int, ...] = () if parent is None else (*parent.path, parent._splits, wire.ranks[0])
        self.family: weakref.WeakSet[Communicator] = weakref.WeakSet() if parent is None else parent.family
        self.family.add(self)
        self._memory = node.attach(wire)
        self.door = Door(self._memory.native if self._memory is not None else None)
        self._messages: list[message.Message] = []
        self._divisors = {"sum": 1, "mean": wire.size, "max": 1, "min": 1}
        self._node: Communicator | None = None
        self._levels: hierarchical.Levels | None = None
        self._asked_levels = False
        self._choice: select.Choice | None = None
        self._preferred = os.environ.get("HPCAI_ALGORITHM") or "auto"
        self._shortly: Callable[[str, Array, str, int], int] = _not_here if self._memory is None else self._memory.native.shortly

    def __repr__(self) -> str:
        return f"Communicator(rank={self.rank}, size={self.size}, wire={type(self.wire).__name__})"

    # Groups and memory.

    def split_by_node(self) -> Communicator:
        """The communicator of the ranks on this rank's node, the same object at each call. The first call is collective."""
        return self._node or self._split_by_node()

    @alone
    def _split_by_node(self) -> Communicator:
        self._agree("split_by_node")
        self._node = self._split(self.wire.node_color(), self.rank)
        assert self._node is not None
        return self._node

    @alone
    def split(self, color: int | None, key: int | None = None) -> Communicator | None:
        """Split the ranks into groups, one for each color. Collective over this communicator.

        Args:   color: an integer from 0 to 2**31 - 1, or None for a rank that joins no group; True and False are 1 and 0.
                key: an integer of 32 bits; a group's ranks are ordered by (key, rank). Default: the rank.
        Returns: the communicator of the ranks with the same color, which belongs to this thread; None where color is None.
        Raises: ValueError (color or key is no such integer).
        """
        problem = call.split_problem(color, key)
        self._agree("split", problem=problem)
        return self._split(None if color is None else int(color), self.rank if key is None else int(key))

    def _split(self, color: int | None, key: int) -> Communicator | None:
        self._splits += 1
        wire = self.wire.split(color, key)
        return None if wire is None else Communicator(wire, self)

    @alone
    def symmetric_empty(self, shape: int | Sequence[int], dtype: Any = np.float32) -> Array:
        """An uninitialised *symmetric* array: collectives on it and on its slices need no copy where ranks share memory.

        Collective: every rank makes one of the same shape and dtype. Its memory is freed when the array and all its views are
        gone on all ranks, which may be after the communicator.

        Args:   shape: a length or a sequence of lengths, at most 32.
                dtype: any dtype of fixed size without Python objects.
        Returns: an array in shared memory; an ordinary array where the ranks share no memory, or it has run out.
        Raises: ValueError (negative lengths, 2**40 bytes or more), TypeError (dtype of objects or without bytes).
        """
        problem = call.empty_problem(shape, dtype)
        wanted = np.broadcast_to(np.empty((), dtype), shape) if problem is None else None  # shape and dtype without the memory
        self._agree("symmetric_empty", wanted, problem=problem)
        made = None if self._memory is None else self._memory.empty(shape, dtype)
        return np.empty(shape, dtype) if made is None else made

    def adopt(self, x: Array) -> Array:
        """Return a *symmetric* copy of `x`, to take its place where the same array is reduced again and again.

        Collective: every rank gives an array of the same shape and dtype. `x` itself stays as it is and may be dropped. As with
        `symmetric_empty` the copy is an ordinary array where the ranks do not share memory. It is C-contiguous; torch.from_numpy
        and the like share its memory.

        Raises: TypeError (not an array, or of objects). Cost: a barrier and a copy; later collectives on the copy copy nothing.

        >>> from hpcai.comm import threads
        >>> threads.run(2, lambda comm: comm.allreduce(comm.adopt(np.ones(3))).tolist())
        [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
        """
        if not isinstance(x, np.ndarray):
            raise TypeError(f"adopt wants a numpy array, got {type(x).__name__}")
        made = self.symmetric_empty(x.shape, x.dtype)
        made[...] = x
        return made

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float32) -> Array:
        """Deprecated: the earlier name of `symmetric_empty`."""
        warnings.warn("comm.empty is called comm.symmetric_empty now", DeprecationWarning, stacklevel=2)
        return self.symmetric_empty(shape, dtype)

    @property
    def shares_memory(self) -> bool:
        """True if all ranks address each other's memory, so that collectives need no messages."""
        return self._memory is not None

    @property
    def reaches(self) -> bool:
        """True if the ranks can read and write each other's private memory too (cross-memory attach)."""
        return self._memory is not None and self._memory.reaches

    @property
    def staged_bytes(self) -> int:
        """Up to so many bytes ordinary arrays pass through shared segments; 0 where the ranks do not share memory."""
        return 0 if self._memory is None else self._memory.native.staged_bytes

    @contextlib.contextmanager
    def staged_up_to(self, limit_bytes: int) -> Iterator[None]:
        """Have ordinary arrays up to this size pass through shared segments meanwhile (see wires/staging.py). Equal on all ranks.

        Raises: ValueError where the ranks do not share memory.
        """
        if self._memory is None:
            raise ValueError("staged_up_to is for ranks that share memory")
        native = self._memory.native
        before, native.staged_bytes = native.staged_bytes, limit_bytes
        try:
            yield
        finally:
            native.staged_bytes = before

    @property
    def notices_ends(self) -> bool:
        """True if a rank that waits for another rank notices the end of its process."""
        return self._memory is None or self._memory.notices_ends

    def addresses(self, x: Array) -> list[int] | None:
        """The address in this process of each rank's part of the symmetric array `x`, by rank; None if `x` is not symmetric."""
        return None if self._memory is None else self._memory.addresses(x)

    def chunk(self, n: int, rank: int | None = None) -> slice:
        """The slice of an array of n elements that `reduce_scatter` leaves with `rank` (default: this rank).

        Chunks are contiguous, in rank order, and differ in length by one element at most. Raises: ValueError (n is negative or no
        integer; there is no such rank).
        """
        rank = self.rank if rank is None else rank
        if not call.whole(n) or n < 0:
            raise ValueError(f"chunk wants a number of elements from 0, got {n!r}")
        if not call.whole(rank) or not 0 <= rank < self.size:
            raise ValueError(f"chunk wants a rank from 0 to {self.size - 1}, got {rank!r}")
        return schedule.split(int(n), self.size, int(rank))

    # Waiting.

    @property
    def calls(self) -> int:
        """The number of collectives that this rank has called on this communicator."""
        return self._calls + (self._memory.native.short_calls if self._memory is not None else 0)

    @property
    def waiting_since(self) -> float:
        """When this rank began to wait for others in a call here, by time.monotonic(), in seconds; 0 while it does not wait."""
        return max(self.wire.waiting_since, self._memory.native.waiting_since if self._memory is not None else 0.0)

    @property
    def waited_s(self) -> float:
        """Seconds that this rank has waited for others to come to collectives here, in all. The first microseconds of a wait do
        not count, nor does the transfer of data by messages. The slowest rank waits least.
        """
        return self.wire.waited_s + (self._memory.native.waited_s if self._memory is not None else 0.0)

    def missing(self) -> list[int] | None:
        """The ranks for which this rank waits; None without shared memory, where they must be asked (see diagnosis/watch.py).

        May be called on any thread.
        """
        return None if self._memory is None else self._memory.native.missing()

    def set_timeout(self, seconds: float) -> None:
        """Set how long this rank waits for others in a call before StallError ends the job.

        The limit is that of this communicator and of all that were or will be split from the same one. By default it is
        $HPCAI_TIMEOUT_S, else 300 s.

        Args:   seconds: above 0, 1e7 at most.
        Raises: UsageError (other values).
        """
        seconds = stall.set_timeout(seconds)
        for one in self.family:
            one.wire.timeout_s = seconds
            if one._memory is not None:
                one._memory.native.timeout_s = seconds

    # Collectives on arrays.

    def allreduce(self, x: Array, op: str = "sum", *, algorithm: str = "auto") -> Array:
        """Reduce `x` over all ranks, in place. Every rank gets the same bytes, and the same input gives the same bytes again.

        Args:   x: contiguous array of any shape; f16, bf16, f32, f64, i32 or i64; equal shape and dtype on all ranks. A bool
                array takes "max" (or) and "min" (and).
                op: "sum", "mean", "max", "min". 16-bit values are summed in f32 and rounded once; integer means truncate. A mean
                is the sum divided by P: a float sum that overflows gives an infinite mean, and an integer sum wraps as
                numpy's does (to divide first would round every share). A NaN on any rank gives NaN, also for "max" and
                "min".
                algorithm: "node" (shared memory, see node.py), "hierarchical" (shared memory on each node, a ring between
                them), "ring" or "halving_doubling" (messages, see ring.py, halving.py), "mpi" for the library's own
                MPI_Allreduce; "auto" is $HPCAI_ALGORITHM if set, else "node" where the ranks share memory, else the algorithm
                that the cost model predicts to be fastest (see select.py).
        Returns: `x`.
        Raises: TypeError (no plain numpy array, or a dtype that is not listed), ValueError (not contiguous, read-only, unknown op
                or algorithm), RankMismatch (ranks disagree), StallError (a rank did not come in time), RankFailed (a rank ended).
        Cost:   node: P reads and P writes of every element in all for symmetric arrays, 3 + P passes through the cache for
                others, 1 barrier for short messages, else 2. Ring: 2(P-1)/P n elements sent per rank.
        """
        self._collective("allreduce", x, op, 0, self._preferred if algorithm == "auto" else algorithm)
        return x

    def iallreduce(self, x: Array, op: str = "sum", *, algorithm: str = "auto") -> Request:
        """Start an `allreduce` on a background thread, so that this thread can compute meanwhile.

        Several may be under way, also on other communicators; they run in the order in which they were started. Until they are
        waited for, other calls of this thread on communicators raise UsageError. Where MPI serves the main thread only (below
        MPI_THREAD_SERIALIZED), `wait` runs them.

        Args:   x, op, algorithm: as of `allreduce`; do not use `x` before `wait`.
        Returns: a request, whose `wait()` gives `x`.
        Raises: by `wait`, as `allreduce`.
        """
        carrier = of_this_thread() if self.wire.serves_threads() else Deferred()
        return Request(carrier, partial(self.allreduce, algorithm=algorithm), x, op)

    def reduce_scatter(self, x: Array, op: str = "sum", *, algorithm: str = "auto") -> Array:
        """Reduce `x` over all ranks and keep only this rank's chunk; the rest of `x` is undefined afterwards.

        Args:   x, op: as of `allreduce`.
                algorithm: "auto", "node" or "ring".
        Returns: the view `x.reshape(-1)[comm.chunk(x.size)]`.
        Raises: as `allreduce`.
        Cost:   half of `allreduce`.
        """
        self._collective("reduce_scatter", x, op, 0, algorithm)
        return x.reshape(-1)[schedule.split(x.size, self.size, self.rank)]

    def allgather(self, x: Array, *, algorithm: str = "auto") -> Array:
        """Gather all ranks' chunks of `x`, in place: each rank has written its own, `x.reshape(-1)[comm.chunk(x.size)]`.

        After `reduce_scatter` it completes an allreduce. Row r of a (size, k) array is rank r's chunk.

        Args:   x: contiguous array of any dtype without Python objects; equal shape and dtype on all ranks.
                algorithm: "auto", "node" or "ring".
        Returns: `x`.
        Raises: as `allreduce`.
        Cost:   ring: n(P-1)/P elements sent per rank.
        """
        self._collective("allgather", x, "", 0, algorithm)
        return x

    def allgather_each(self, arrays: Iterable[Array]) -> Iterator[Array]:
        """`allgather` of several arrays in turn: while one is under way, the next is taken from `arrays`, which may take time.

        Args:   arrays: yields arrays in which this rank has written its chunk; on all ranks equally many, of equal shapes and
                dtypes.
        Returns: an iterator over the gathered arrays, in order; each comes after the next one was taken.
        Raises: as `allgather`; the ranks' calls are compared at the first array only.
        """
        if self.size > 1 and self._memory is None:
            self.door.enter("allgather_each")
            try:
                yield from ring.allgather_each(self._each_checked(arrays), self.wire)
            finally:
                self.door.leave()
            return
        before = None
        for x in arrays:
            if before is not None:
                yield before
            before = self.allgather(x)
        if before is not None:
            yield before

    def _each_checked(self, arrays: Iterable[Array]) -> Iterator[Array]:
        for i, x in enumerate(arrays):
            problem = call.array_problem("allgather", x, "")
            if i == 0:
                self._agree("allgather", x, problem=problem)
            elif problem is not None:
                raise problem
            yield x

    def broadcast(self, x: Array, root: int = 0, *, algorithm: str = "auto") -> Array:
        """Copy `x` from rank `root` to all ranks, in place.

        Args:   x: contiguous array of any dtype without Python objects; equal shape and dtype on all ranks.
                root: the rank whose values are copied; equal on all ranks.
                algorithm: "auto", "node" or "ring".
        Returns: `x`.
        Raises: as `allreduce`; ValueError (root is no rank).
        Cost:   ring: n elements sent per rank, along a chain.
        """
        self._collective("broadcast", x, "", root, algorithm)
        return x

    def alltoall(self, x: Array) -> Array:
        """Send row r of `x` to rank r and replace it by the row that rank r sends here, in place.

        Args:   x: contiguous array (size, ...) of any dtype without Python objects; equal shape and dtype on all ranks.
        Returns: `x`.
        Raises: as `allreduce`; ValueError (not a row for each rank).
        Cost:   x.nbytes (P-1)/P sent per rank; through shared memory where the ranks share it, else by messages.
        """
        self._collective("alltoall", x, "", 0, "auto")
        return x

    def isend(self, x: Array, to: int, lane: int = 0) -> Pending:
        """Start to send `x` to rank `to`. Messages are not compared with other ranks' calls.

        Args:   x: contiguous array of any dtype without Python objects, 2**30 bytes at most; do not change it before `wait()`.
                to: another rank.
                lane: 0 or 1; messages from one rank to another arrive in order within a lane.
        Returns: the message under way, with `wait()` and `done()`.
        Raises: ValueError (no other rank, no lane, not contiguous, too long), TypeError (dtype of objects, no plain array).
        """
        return self._under_way(message.isend, x, to, lane)

    def irecv(self, x: Array, source: int, lane: int = 0) -> Pending:
        """Start to receive into `x` from rank `source`.

        Args:   x: contiguous, writeable array of the sender's shape and dtype; its values are there after `wait()`.
                source: another rank.
                lane: 0 or 1, as the sender's.
        Returns: the message under way, with `wait()` and `done()`.
        Raises: as `isend`; ValueError (read-only); by `wait`, RankMismatch if the sender's array has another dtype or shape.
        """
        return self._under_way(message.irecv, x, source, lane)

    def send(self, x: Array, to: int, lane: int = 0) -> None:
        """Send `x` to rank `to`; returns when `x` may be changed, at the latest when it is received there.

        Two ranks that both send to each other first may wait for ever, as in MPI. Arguments and errors as `isend`.
        """
        self.isend(x, to, lane).wait()

    def recv(self, x: Array, source: int, lane: int = 0) -> Array:
        """Receive into `x` from rank `source`, and return `x`. Arguments and errors as `irecv` and its `wait`."""
        self.irecv(x, source, lane).wait()
        return x

    def _under_way(self, begin: Callable[..., message.Message], x: Array, peer: int, lane: int) -> message.Message:
        """Begin a message, and keep it until it has ended, since its array may have no other owner."""
        self.door.check(begin.__name__)
        self._messages = [one for one in self._messages if not one.advance()]
        made = begin(self, x, peer, lane)
        self._messages.append(made)
        return made

    @alone
    def barrier(self) -> None:
        """Wait until every rank has called it. Raises: RankMismatch, StallError and RankFailed, as `allreduce`."""
        self._agree("barrier")

    # Agreement on small Python values.

    @alone
    def allgather_object(self, value: T) -> list[T]:
        """Gather a small Python value of every rank on all ranks.

        Args:   value: anything that pickle can carry; 2 GiB at most over all ranks.
        Returns: the ranks' values, in rank order.
        Raises: UsageError (not picklable, too long, or cannot be unpickled here).
        """
        raw, problem = call.pickled(value, self.size)
        self._agree("allgather_object", problem=problem)
        return [call.unpickled(one, self.wire.ranks[rank]) for rank, one in enumerate(self.wire.exchange(raw))]

    def on_root(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 only, as to read or write a file once. Collective.

        Args:   work: a function without arguments, with a result that pickle can carry.
        Returns: its result, on all ranks.
        Raises: the HpcaiError or OSError of `work`, on all ranks.
        """
        outcome: Any = None
        if self.rank == 0:
            try:
                outcome = (work(), None)
            except (HpcaiError, OSError) as error:
                outcome = (None, error)
        result, failure = self.allgather_object(outcome)[0]
        if failure is not None:
            raise failure
        return result

    @alone
    def leave(self) -> None:
        """Declare that this rank calls no more collectives. Collective. Raises: RankMismatch if another rank still calls one."""
        self._agree("leave")

    # Checks, and the way to an algorithm.

    def _collective(self, kind: str, x: Array, op: str, root: int, algorithm: str) -> None:
        """Run the call on `x`: in shared memory by one native call, else after the checks here and against the other ranks."""
        if algorithm == "auto":
            status = self._shortly(kind, x, op, root)
            if status == node.DONE:
                return
            if status != node.NOT_HERE:
                self._refuse(status, kind, x, op, root, algorithm, None)
        self._checked_collective(kind, x, op, root, algorithm)

    def _checked_collective(self, kind: str, x: Array, op: str, root: int, algorithm: str) -> None:
        """Check the call here and against the other ranks', then run it."""
        if self.size > 1:
            self.door.enter(kind)
        try:
            problem = call.array_problem(kind, x, op) or call.rows_problem(kind, x, self.size)
            problem = problem or call.choice_problem(kind, root, algorithm, self.wire, self._memory is not None)
            if problem is not None or self._memory is None or algorithm not in ("auto", "node"):
                self._agree(kind, x, op, root, problem, algorithm)
            flat = x.reshape(-1)
            moved = call.moved(flat, op)
            if self._memory is not None and algorithm in ("auto", "node"):
                self._in_memory(kind, x, moved, op, root, algorithm)
            elif self.size > 1 and flat.size:
                self._over_wire(kind, moved, op, root, algorithm)
            if moved is not flat:
                flat[...] = moved
        finally:
            if self.size > 1:
                self.door.leave()

    def _in_memory(self, kind: str, x: Array, flat: Array, op: str, root: int, algorithm: str) -> None:
        """Run this call of `x` on its elements `flat` in shared memory, which compares the ranks' calls too."""
        assert self._memory is not None
        self._calls += 1
        status = self._memory.native.collective(
            call.KINDS.index(kind),
            CODES.get(flat.dtype, call.BYTES),
            call.FOLDS[op],
            self._divisors.get(op, 1),
            root,
            flat.__array_interface__["data"][0],
            flat.size,
            flat.itemsize,
            call.key(self.rank, kind, x, op, root, algorithm, None),
        )
        if status != node.DONE:
            self._refuse(status, kind, x, op, root, algorithm, None)

    def _over_wire(self, kind: str, flat: Array, op: str, root: int, algorithm: str) -> None:
        if kind == "allreduce":
            self._allreduce_over_wire(flat, op, algorithm)
        elif kind == "reduce_scatter":
            ring.reduce_scatter(flat, self.wire, op)
        elif kind == "allgather":
            ring.allgather(flat, self.wire)
        elif kind == "alltoall":
            pairwise.alltoall(flat, self.wire)
        else:
            ring.broadcast(flat.view(np.uint8), self.wire, root)

    def _allreduce_over_wire(self, flat: Array, op: str, algorithm: str) -> None:
        if algorithm == "auto":
            algorithm = select.choose(flat.nbytes, self.selection().shape, self.selection().constants)
        ALGORITHMS["ring" if algorithm == "node" else algorithm].run(flat, self.wire, self._two_levels, op)

    def selection(self) -> select.Choice:
        """The shape and constants by which "auto" chooses an algorithm over the wire. The first call is collective."""
        if self._choice is None:
            self._choice = select.agree(self.wire)
        return self._choice

    def _two_levels(self) -> hierarchical.Levels | None:
        """The levels of nodes and rails, or None where there are not two. The first call is collective."""
        if not self._asked_levels:
            with self.door.nested():
                self._levels, self._asked_levels = hierarchical.levels(self), True
        return self._levels

    def _agree(
        self,
        kind: str,
        x: Array | None = None,
        op: str = "",
        choice: int = 0,
        problem: Exception | None = None,
        algorithm: str = "auto",
    ) -> None:
        """Compare this call with the other ranks'; all raise if they differ or if one of them has a `problem`."""
        self._calls += 1
        if self.size > 1:
            key = call.key(self.rank, kind, x, op, choice, algorithm, problem)
            if self._memory is not None:
                status = self._memory.native.agree(key)
            else:
                status = node.DONE if self.wire.agree(key) else node.MISMATCH
            if status != node.DONE:
                self._refuse(status, kind, x, op, choice, algorithm, problem)
        if problem is not None:
            raise problem

    def _refuse(
        self, status: int, kind: str, x: Array | None, op: str, choice: int, algorithm: str, problem: Exception | None
    ) -> None:
        """Raise the error of a call that ended with this status, but not its own `problem`."""
        if status == node.STALLED:
            assert self._memory is not None
            self._memory.raise_stall(kind)
        if status == node.UNREACHED:
            assert self._memory is not None
            self._memory.raise_if_unreached(kind)
            raise HpcaiError(
                f"{kind}: the kernel denied access to another rank's memory during the call; set HPCAI_REACH=0 and start again"
            )
        mine = f"{kind}, which failed there: {problem}" if problem else call.describe(kind, x, op, choice, self.calls, algorithm)
        self._disagree(mine, problem)

    def _disagree(self, mine: str, problem: Exception | None) -> None:
        calls = self.wire.exchange(mine)
        if problem is None:
            if ulfm.enabled() and len(set(calls)) == 1:
                raise RankFailed("all ranks make the same call, but their comparison came out wrong: a rank failed in it")
            sides = {
                text: [self.wire.ranks[r] for r, other in enumerate(calls) if other == text] for text in dict.fromkeys(calls)
            }
            shown = "; ".join(f"{call.some(ranks)}: {text}" for text, ranks in sides.items())
            raise RankMismatch(f"ranks disagree in a collective. {shown}. All ranks must make the same calls in the same order.")
