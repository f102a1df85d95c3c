"""The communicator: ranks, and the collectives among them, checked at this door and then handed to an algorithm.

Every collective first compares what the ranks are about to do (kind, length, dtype, operation, and how many came before). A
difference is an error on all of them that shows both sides, where plain MPI would hang or return garbage.
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
from hpcai.errors import HpcaiError, RankFailed, RankMismatch, counted
from hpcai.xp import CODES, Array, bfloat16

T = TypeVar("T")

_OPERATIONS = call.OPERATIONS[1:]


@stacks.communicator
class Communicator:
    """A group of ranks. `hpcai.init()` gives the one of all ranks; `split` makes smaller ones.

    It belongs to the thread that made it: calls on others, in a forked child, within another call (as from a signal handler)
    or while a `Background` carries this thread's calls raise UsageError. Pure questions (rank, size, chunk) do not.

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
        self._short_codes = {op: (call.FOLDS[op], self._divisors[op], call.OPERATIONS.index(op)) for op in _OPERATIONS}
        self._node: Communicator | None = None
        self._levels: hierarchical.Levels | None = None
        self._asked_levels = False
        self._choice: select.Choice | None = None
        self._preferred = os.environ.get("HPCAI_ALGORITHM") or "auto"

    def __repr__(self) -> str:
        return f"Communicator(rank={self.rank}, size={self.size}, wire={type(self.wire).__name__})"

    # Groups and memory.

    def split_by_node(self) -> Communicator:
        """The ranks that share this rank's memory, as a communicator: the same one at each call. The first one is collective."""
        return self._node or self._split_by_node()

    @alone
    def _split_by_node(self) -> Communicator:
        self._agree("split_by_node")
        self._node = self._split(self.wire.node_color(), self.rank)
        assert self._node is not None
        return self._node

    @alone
    def split(self, color: int | None, key: int | None = None) -> Communicator | None:
        """A communicator of the ranks with the same `color` (>= 0), ordered by (key, rank).

        Collective over this communicator. A rank with color None gets None. Key: the rank, where none is given. What is made
        belongs to this thread. Raises: ValueError (negative or no whole numbers; True and False are colors 1 and 0).
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

        Collective: every rank makes one of the same shape and dtype. It is freed when it and all views of it are gone on all
        ranks, and outlives the communicator if it must. Where the ranks do not share memory it is an ordinary array.

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
        """The earlier name of `symmetric_empty`."""
        warnings.warn("comm.empty is called comm.symmetric_empty now", DeprecationWarning, stacklevel=2)
        return self.symmetric_empty(shape, dtype)

    @property
    def shares_memory(self) -> bool:
        """True if all ranks address each other's memory, so that collectives need no messages."""
        return self._memory is not None

    @property
    def reaches(self) -> bool:
        """True if the kernel lets the ranks read and write each other's private memory too."""
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
        """True if a rank that waits for another notices when that one's process ends."""
        return self._memory is None or self._memory.notices_ends

    def addresses(self, x: Array) -> list[int] | None:
        """Return the address of each rank's part of the symmetric array `x` in this process's memory; None if `x` is not
        symmetric.
        """
        return None if self._memory is None else self._memory.addresses(x)

    def chunk(self, n: int, rank: int | None = None) -> slice:
        """The share of `rank` (default: this one) in an array of n elements: what `reduce_scatter` leaves with it."""
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
        return self._calls

    @property
    def waiting_since(self) -> float:
        """The time.monotonic() at which this rank began to wait for others here; 0 while it does not wait."""
        return max(self.wire.waiting_since, self._memory.native.waiting_since if self._memory is not None else 0.0)

    @property
    def waited_s(self) -> float:
        """Seconds that this rank has waited for others to come to collectives here (the first microseconds of a wait do not
        count, nor the transfer of data by messages). The rank that waits least is the one that the others wait for.
        """
        return self.wire.waited_s + (self._memory.native.waited_s if self._memory is not None else 0.0)

    def missing(self) -> list[int] | None:
        """While this rank waits: who has not come; None where only a question would tell (see watch.py). From any thread."""
        return None if self._memory is None else self._memory.native.missing()

    def set_timeout(self, seconds: float) -> None:
        """How long this rank waits for others in a collective before it ends the job (300 s, or $HPCAI_TIMEOUT_S); here, and on
        all communicators that were or will be split from the same. Raises: UsageError (not above 0, beyond environment.MOST_S).
        """
        seconds = stall.set_timeout(seconds)
        for one in self.family:
            one.wire.timeout_s = seconds
            if one._memory is not None:
                one._memory.native.timeout_s = seconds

    # Collectives on arrays.

    def allreduce(self, x: Array, op: str = "sum", *, algorithm: str = "auto") -> Array:
        """Reduce `x` over all ranks, in place; every rank gets the same bytes, and gets them again from the same input.

        Args:   x: contiguous array of any shape; f16, bf16, f32, f64, i32 or i64; equal shape and dtype on all ranks. Of bool
                "max" is or, "min" is and.
                op: "sum", "mean", "max", "min". 16-bit values are summed in f32 and rounded once; integer means truncate. A mean
                is the sum divided by P: where the sum is beyond the dtype it is infinite too, of integers it wraps as
                numpy's sum does (to divide first would round every share). A NaN on any rank gives NaN, also for "max" and
                "min".
                algorithm: "node" (shared memory, see node.py), "hierarchical" (shared memory on each node, a ring between
                them), "ring" or "halving_doubling" (messages, see ring.py, halving.py), "mpi" for the library's own
                MPI_Allreduce; "auto" is $HPCAI_ALGORITHM if set, else the node's where it can be, else the one that the cost
                model predicts to be fastest (see select.py).
        Returns: x.
        Raises: TypeError (dtype, named), ValueError (not contiguous, unknown op), RankMismatch (ranks disagree), StallError
                (a rank did not come in time).
        Cost:   node: P reads and P writes of every element in all for symmetric arrays, 3 + P passes through the cache for
                others, 1 barrier for short messages, else 2. Ring: 2(P-1)/P n elements sent per rank.
        """
        algorithm = self._preferred if algorithm == "auto" else algorithm
        if self._memory is not None and algorithm == "auto" and op in _OPERATIONS and x is not None:
            self._calls += 1
            bits = x.view(np.uint16) if getattr(x, "dtype", None) is bfloat16 else x  # bf16 has no buffer of its own
            fold, divisor, number = self._short_codes[op]
            status = self._memory.native.allreduce(bits, 1, fold, divisor, number, bits is not x)
            if status == node.DONE:
                return x
            if status != node.NOT_HERE:
                self._refuse(status, "allreduce", x, op, 0, "auto", None)
            self._calls -= 1
        self._collective("allreduce", x, op, 0, algorithm)
        return x

    def iallreduce(self, x: Array, op: str = "sum", *, algorithm: str = "auto") -> Request:
        """Start an `allreduce` on a thread of its own, and compute meanwhile; `wait()` for what is returned gives `x`.

        Several may be under way, made in the order in which they were asked for, on this and other communicators. Until they are
        waited for this thread makes no other calls on communicators: those raise UsageError. Where MPI lets no thread call it
        (below MPI_THREAD_SERIALIZED) they are made by `wait`. Raises: by `wait`, as `allreduce`.
        """
        carrier = of_this_thread() if self.wire.serves_threads() else Deferred()
        return Request(carrier, partial(self.allreduce, algorithm=algorithm), x, op)

    def reduce_scatter(self, x: Array, op: str = "sum", *, algorithm: str = "auto") -> Array:
        """Reduce `x` over all ranks and keep only this rank's chunk: returns the view `x.reshape(-1)[comm.chunk(x.size)]`.

        The rest of `x` is undefined afterwards. Arguments and errors as `allreduce`; half its cost.
        """
        flat = self._collective("reduce_scatter", x, op, 0, algorithm)
        return flat[self.chunk(flat.size)]

    def allgather(self, x: Array, *, algorithm: str = "auto") -> Array:
        """Fill `x`, of which each rank has written its own chunk (`comm.chunk(x.size)`), with everyone's chunks, in place.

        The inverse of `reduce_scatter`: both in turn are an allreduce. Row r of a (size, k) array is rank r's chunk.
        Any dtype, contiguous. Returns x.
        """
        self._collective("allgather", x, "", 0, algorithm)
        return x

    def allgather_each(self, arrays: Iterable[Array]) -> Iterator[Array]:
        """`allgather` of one array after the other, where making them takes time: while one is under way the next is asked for.

        arrays: gives arrays in which this rank has written its chunk; as many on all ranks, equal in shape and dtype. They come
        out in order, each after the one behind it was asked for. Raises: as `allgather`; ranks are compared at the first array.
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
        """Copy `x` from rank `root` to all ranks, in place. Any dtype, contiguous, equal shape and dtype on all. Returns x."""
        self._collective("broadcast", x, "", root, algorithm)
        return x

    @alone
    def alltoall(self, x: Array) -> Array:
        """Row r of `x` (size, ...) goes to rank r and is replaced by what rank r sent here, in place. Returns x.

        Any dtype, contiguous, equal shape and dtype on all. Cost: x.nbytes (P-1)/P sent per rank, by messages.
        """
        problem = call.array_problem("alltoall", x, "")
        if problem is None and (x.ndim == 0 or len(x) != self.size):
            problem = ValueError(f"alltoall wants a row for each of {counted(self.size, 'rank')}, got shape {x.shape}")
        self._agree("alltoall", x, problem=problem)
        if self.size > 1 and x.size:
            pairwise.alltoall(x, self.wire)
        return x

    def isend(self, x: Array, to: int, lane: int = 0) -> Pending:
        """Start to send the contiguous array `x` to rank `to`; `wait()` for what is returned before `x` is changed.

        Messages from one rank to another arrive in order within a lane (0, 1). Not compared with other ranks' calls.
        Raises: ValueError (no other rank, lane), TypeError (dtype of objects, no plain array).
        """
        return self._under_way(message.isend, x, to, lane)

    def irecv(self, x: Array, source: int, lane: int = 0) -> Pending:
        """Start to receive into the contiguous array `x`; it is there after `wait()`.

        Raises: as `isend`; ValueError (read-only); by `wait`, RankMismatch if the sender's array has another dtype or shape.
        """
        return self._under_way(message.irecv, x, source, lane)

    def send(self, x: Array, to: int, lane: int = 0) -> None:
        """Send the contiguous array `x` to rank `to`, and return when it may be changed: at the latest when it is received there.

        Two ranks that both send to each other first may wait for ever, as in MPI. Raises: as `isend`.
        """
        self.isend(x, to, lane).wait()

    def recv(self, x: Array, source: int, lane: int = 0) -> Array:
        """Receive into the contiguous array `x`, and return it. Raises: as `irecv` and its `wait`."""
        self.irecv(x, source, lane).wait()
        return x

    def _under_way(self, begin: Callable[..., message.Message], x: Array, peer: int, lane: int) -> message.Message:
        """Begin a message, and keep it until it is over: its array may have no other owner."""
        self.door.check(begin.__name__)
        self._messages = [one for one in self._messages if not one.advance()]
        made = begin(self, x, peer, lane)
        self._messages.append(made)
        return made

    @alone
    def barrier(self) -> None:
        """Return when every rank has called it."""
        self._agree("barrier")

    # Agreement on small Python values.

    @alone
    def allgather_object(self, value: T) -> list[T]:
        """Every rank's `value` (small, picklable), in rank order, on all ranks. Raises: UsageError (not picklable)."""
        raw, problem = call.pickled(value, self.size)
        self._agree("allgather_object", problem=problem)
        return [call.unpickled(one, self.wire.ranks[rank]) for rank, one in enumerate(self.wire.exchange(raw))]

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
        result, failure = self.allgather_object(outcome)[0]
        if failure is not None:
            raise failure
        return result

    @alone
    def leave(self) -> None:
        """Say that this rank calls no more collectives. Raises RankMismatch if another rank still waits in one."""
        self._agree("leave")

    # The door.

    def _collective(self, kind: str, x: Array, op: str, root: int, algorithm: str) -> Array:
        """Check the call here and against the other ranks', then run it; returns `x` flat."""
        if self.size > 1:
            self.door.enter(kind)
        try:
            problem = call.array_problem(kind, x, op) or call.choice_problem(
                kind, root, algorithm, self.wire, self._memory is not None
            )
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
            return flat
        finally:
            if self.size > 1:
                self.door.leave()

    def _in_memory(self, kind: str, x: Array, flat: Array, op: str, root: int, algorithm: str) -> None:
        """Make this call, of `x`, on its elements `flat`, where memory is the wire; the ranks are compared on the way."""
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
        else:
            ring.broadcast(flat.view(np.uint8), self.wire, root)

    def _allreduce_over_wire(self, flat: Array, op: str, algorithm: str) -> None:
        if algorithm == "auto":
            algorithm = select.choose(flat.nbytes, self.selection().shape, self.selection().constants)
        ALGORITHMS["ring" if algorithm == "node" else algorithm].run(flat, self.wire, self._two_levels, op)

    def selection(self) -> select.Choice:
        """The constants by which "auto" chooses between algorithms over the wire. The first call is collective."""
        if self._choice is None:
            self._choice = select.agree(self.wire)
        return self._choice

    def _two_levels(self) -> hierarchical.Levels | None:
        """The levels of nodes and rails, found at the first call that needs them; None where there are not two."""
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
        """Raise what a call that did not come about deserves."""
        if status == node.STALLED:
            assert self._memory is not None
            self._memory.raise_stall(kind)
        if status == node.UNREACHED:
            assert self._memory is not None
            self._memory.raise_if_unreached(kind)
            raise HpcaiError(
                f"{kind}: the kernel refused access to another rank's memory half-way; set HPCAI_REACH=0 and start again"
            )
        mine = f"{kind}, which failed there: {problem}" if problem else call.describe(kind, x, op, choice, self._calls, algorithm)
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
