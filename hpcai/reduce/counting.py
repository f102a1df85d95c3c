"""Communicators that measure reducers: one counts bytes and seconds of collectives, one sends nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import numpy as np

from hpcai.comm.collectives import Collectives
from hpcai.xp import Array


class Sent(NamedTuple):
    """A call of a collective: its kind, the bytes of its array, its seconds, and whether coding went on at the same
    time."""

    kind: str
    nbytes: int
    seconds: float = 0.0
    beside: bool = False


def sent_bytes(sent: Sent, ranks: int) -> float:
    """Return the bytes that each rank sends in this collective, on a ring or pairwise.

    >>> sent_bytes(Sent("allreduce", 1000), 2), sent_bytes(Sent("allgather", 1000), 4)
    (1000.0, 750.0)
    """
    return (2 if sent.kind in ("allreduce", "gradient") else 1) * sent.nbytes * (ranks - 1) / ranks


class _Stopwatch:
    """The seconds that an iterable takes: first, until its first item; total, for all items and its work after the last."""

    def __init__(self) -> None:
        self.first, self.total = 0.0, 0.0

    def each(self, items: Iterable[Array]) -> Iterator[Array]:
        """Yield the items."""
        iterator = iter(items)
        while True:
            begin = perf_counter()
            item = next(iterator, None)
            self.total += perf_counter() - begin
            self.first = self.first or self.total
            if item is None:
                return
            yield item


class Counting:
    """`comm`, with a list of the calls, and beside_s: the seconds of coding during which a collective is in progress."""

    def __init__(self, comm: Collectives, algorithm: str = "auto", gradient: Array | None = None):
        """algorithm: of all-reduces. gradient: all-reduces of this array or its parts are recorded as kind "gradient"."""
        self.comm, self.rank, self.size = comm, comm.rank, comm.size
        self.algorithm, self.gradient = algorithm, gradient
        self.calls: list[Sent] = []
        self.beside_s = 0.0

    def allreduce(self, x: Array, op: str = "sum", *, algorithm: str = "auto") -> Array:
        """As Communicator.allreduce."""
        begin = perf_counter()
        self.comm.allreduce(x, op, algorithm=self.algorithm)
        plain = self.gradient is not None and np.may_share_memory(x, self.gradient)
        return self._called("gradient" if plain else "allreduce", x, begin)

    def allgather(self, x: Array) -> Array:
        """As Communicator.allgather."""
        begin = perf_counter()
        self.comm.allgather(x)
        return self._called("allgather", x, begin)

    def allgather_each(self, arrays: Iterable[Array]) -> Iterator[Array]:
        """As Communicator.allgather_each; the recorded seconds exclude the time in which arrays are made and used."""
        making = _Stopwatch()
        running, taking = self.comm.allgather_each(making.each(arrays)), 0.0
        while True:
            begin, before = perf_counter(), making.total
            x = next(running, None)
            spent = perf_counter() - begin - (making.total - before)
            if x is None:
                break
            self.calls.append(Sent("allgather", x.nbytes, spent, beside=True))
            self.beside_s += taking
            begin = perf_counter()
            yield x
            taking = perf_counter() - begin
        self.beside_s += making.total - making.first

    def alltoall(self, x: Array) -> Array:
        """As Communicator.alltoall."""
        begin = perf_counter()
        self.comm.alltoall(x)
        return self._called("alltoall", x, begin)

    def _called(self, kind: str, x: Array, begin: float) -> Array:
        self.calls.append(Sent(kind, x.nbytes, perf_counter() - begin))
        return x


@dataclass
class CostRecord:
    """The cost of one bucket's reductions: their number, seconds of coding, and the calls of the last one."""

    count: int = 0
    coding_s: float = 0.0
    calls: list[Sent] = field(default_factory=list)

    @contextmanager
    def of(self, comm: Collectives, algorithm: str) -> Iterator[Counting]:
        """Record one reduction on `comm`, done in the body."""
        counting, begin = Counting(comm, algorithm), perf_counter()
        yield counting
        self.count += 1
        self.coding_s += perf_counter() - begin - sum(call.seconds for call in counting.calls)
        self.calls = counting.calls


class SilentRank:
    """One rank that simulates `size` ranks: every other rank is assumed to send this rank's data, and nothing is sent.

    A reducer on this communicator takes only the time of coding on `size` ranks.
    """

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    def allreduce(self, x: Array, op: str = "sum", *, algorithm: str = "auto") -> Array:
        """Return x unchanged."""
        return x

    def allgather(self, x: Array) -> Array:
        """Copy this rank's row of x, (P, k), into all rows."""
        x[:] = x[self.rank]
        return x

    def allgather_each(self, arrays: Iterable[Array]) -> Iterator[Array]:
        """Copy this rank's row of each array into all rows."""
        before = None
        for x in arrays:
            if before is not None:
                yield before
            before = self.allgather(x)
        if before is not None:
            yield before

    def alltoall(self, x: Array) -> Array:
        """Copy this rank's row of x, (P, k), into all rows."""
        x[:] = x[self.rank]
        return x
