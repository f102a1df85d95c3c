"""Communicators for reducers to be watched with: one counts what is sent and how long it takes, one sends nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

from hpcai.reduce.reducer import Collectives
from hpcai.xp import Array


class Sent(NamedTuple):
    """A collective that was called: its kind, the bytes of its array, the seconds that it took."""

    kind: str
    nbytes: int
    seconds: float = 0.0


def sent_bytes(sent: Sent, ranks: int) -> float:
    """Bytes that each rank sends in this collective by a ring or in pairs.

    >>> sent_bytes(Sent("allreduce", 1000), 2), sent_bytes(Sent("allgather", 1000), 4)
    (1000.0, 750.0)
    """
    return (2 if sent.kind == "allreduce" else 1) * sent.nbytes * (ranks - 1) / ranks


class Counting:
    """`comm`, with a list of what was called."""

    def __init__(self, comm: Collectives):
        self.comm, self.rank, self.size = comm, comm.rank, comm.size
        self.calls: list[Sent] = []

    def allreduce(self, x: Array, op: str = "sum") -> Array:
        """As Communicator.allreduce."""
        begin = perf_counter()
        self.comm.allreduce(x, op)
        return self._called("allreduce", x, begin)

    def allgather(self, x: Array) -> Array:
        """As Communicator.allgather."""
        begin = perf_counter()
        self.comm.allgather(x)
        return self._called("allgather", x, begin)

    def alltoall(self, x: Array) -> Array:
        """As Communicator.alltoall."""
        begin = perf_counter()
        self.comm.alltoall(x)
        return self._called("alltoall", x, begin)

    def _called(self, kind: str, x: Array, begin: float) -> Array:
        self.calls.append(Sent(kind, x.nbytes, perf_counter() - begin))
        return x


@dataclass
class Tally:
    """What the reductions of one bucket have cost: how many, seconds of coding, and the calls of the last."""

    count: int = 0
    coding_s: float = 0.0
    calls: list[Sent] = field(default_factory=list)

    @contextmanager
    def of(self, comm: Collectives) -> Iterator[Counting]:
        """Count one reduction on `comm`."""
        counting, begin = Counting(comm), perf_counter()
        yield counting
        self.count += 1
        self.coding_s += perf_counter() - begin - sum(call.seconds for call in counting.calls)
        self.calls = counting.calls


class Mute:
    """A rank that is alone but does not know: everyone else is taken to say what this rank says, and nothing is sent.

    A reducer on it takes the time that coding takes on so many ranks.
    """

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    def allreduce(self, x: Array, op: str = "sum") -> Array:
        """x as it is."""
        return x

    def allgather(self, x: Array) -> Array:
        """(P, k): this rank's row in all."""
        x[:] = x[self.rank]
        return x

    def alltoall(self, x: Array) -> Array:
        """(P, k): this rank's row in all."""
        x[:] = x[self.rank]
        return x
