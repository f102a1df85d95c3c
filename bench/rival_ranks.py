"""The ranks of bench.rivals: a library with a call for each collective, and the loop that checks and times it.

`python -m bench.rival_ranks hpcai|mpi ADDRESS` answers the lines of bench.rivals at a socket's address.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from bench.jobs import answer_lines

FROM_REWRITTEN = 4 << 10
"""Bytes from which arrays are written anew before each call."""

CHECKED_AT_ONCE = 1 << 18
"""Elements that are checked at a time."""


class Library(NamedTuple):
    """How ranks call a library: their numbers, a barrier, an array of so many f32, and a collective on it with its result."""

    rank: int
    size: int
    barrier: Callable[[], Any]
    array: Callable[[int, str], Any]
    call: Callable[[str, Any], tuple[Callable[[], Any], Any]]


def hpcai_library(comm: Any) -> Library:
    def array(n: int, kind: str) -> Any:
        return comm.symmetric_empty(n) if kind == "symmetric" else np.empty(n, np.float32)

    def call(collective: str, x: Any) -> tuple[Callable[[], Any], Any]:
        shaped = x.reshape(comm.size, -1) if collective == "alltoall" else x
        return partial(getattr(comm, collective), shaped), x[comm.chunk(x.size)] if collective == "reduce_scatter" else x

    return Library(comm.rank, comm.size, comm.barrier, array, call)


def mpi_library() -> Library:
    import mpi4py

    mpi4py.rc.thread_level = "single"  # with which MPICH may use its fastest collectives
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def call(collective: str, x: Any) -> tuple[Callable[[], Any], Any]:
        if collective == "allreduce":
            return lambda: world.Allreduce(MPI.IN_PLACE, x), x
        if collective == "allgather":
            return lambda: world.Allgather(MPI.IN_PLACE, x), x
        if collective == "broadcast":
            return lambda: world.Bcast(x), x
        out = np.empty(x.size // (world.size if collective == "reduce_scatter" else 1), np.float32)
        verb = world.Reduce_scatter_block if collective == "reduce_scatter" else world.Alltoall
        return lambda: verb(x, out), out

    return Library(world.rank, world.size, world.Barrier, lambda n, kind: np.empty(n, np.float32), call)


class Rank:
    """A rank that answers the driver's lines."""

    def __init__(self, library: Library):
        self.library = library
        self.drop()

    def answer(self, text: str) -> str:
        """Do what a line of the driver asks for; returns the answer."""
        verb, *words = text.split()
        if verb == "use":
            return self.use(*words)
        return self.drop() if verb == "drop" else repr(self.time(int(words[0])))

    def drop(self) -> str:
        """Free all arrays."""
        self.made: dict[tuple[str, ...], tuple[Any, Callable[[], Any]]] = {}
        self.fresh: Any = None
        return "ok"

    def use(self, collective: str, size: str, kind: str) -> str:
        """Make an array of a kind, unless there is one, and check the collective's result on it."""
        key, said = (collective, size, kind), "ok"
        if key not in self.made:
            P, n = self.library.size, max(1, int(size) // 4)
            n = n if collective in ("allreduce", "broadcast") else -(-n // P) * P
            x = self.library.array(n, kind)
            call, result = self.library.call(collective, x)
            said = checked(self.library, collective, x, call, result)
            x[:] = 0  # sums of zeros stay zeros, however often they are repeated
            self.made[key] = x, call
            if self.fresh is None and int(size) >= FROM_REWRITTEN:
                self.fresh = np.zeros(n, np.float32)
        self.now = key
        return said

    def time(self, count: int) -> float:
        """Seconds of so many calls on this rank."""
        (x, call), fresh, barrier = self.made[self.now], self.fresh, self.library.barrier
        barrier()
        begin = perf_counter()
        if fresh is None:
            for _ in range(count):
                call()
            return perf_counter() - begin
        spent = 0.0
        for _ in range(count):
            np.copyto(x, fresh)
            barrier()
            begin = perf_counter()
            call()
            spent += perf_counter() - begin
        return spent


def checked(library: Library, collective: str, x: Any, call: Callable[[], Any], result: Any) -> str:
    """Run the collective once on arrays in which all elements and ranks differ: "ok", or what is wrong."""
    for start in range(0, x.size, CHECKED_AT_ONCE):
        stop = min(start + CHECKED_AT_ONCE, x.size)
        x[start:stop] = values(library.rank, start, stop)
    call()
    for start in range(0, result.size, CHECKED_AT_ONCE):
        stop = min(start + CHECKED_AT_ONCE, result.size)
        if not np.array_equal(result[start:stop], expected(library, collective, x.size, start, stop)):
            return f"{collective} of {x.nbytes} bytes is wrong on rank {library.rank}"
    return "ok"


def values(rank: int, start: int, stop: int) -> Any:
    """Elements of a rank's array; small integers, whose sums are exact."""
    return ((np.arange(start, stop) * (rank + 3) + 17 * rank) % 1021 - 510).astype(np.float32)


def expected(library: Library, collective: str, n: int, start: int, stop: int) -> Any:
    """Elements start to stop of a collective's result on arrays of n elements."""
    P, chunk = library.size, n // library.size
    if collective == "broadcast":
        return values(0, start, stop)
    if collective in ("allreduce", "reduce_scatter"):
        first = library.rank * chunk if collective == "reduce_scatter" else 0
        return sum(values(rank, first + start, first + stop) for rank in range(P))
    index = np.arange(start, stop)
    parts = []
    for rank in range(start // chunk, (stop - 1) // chunk + 1):
        mine = index[index // chunk == rank]
        first = library.rank * chunk - rank * chunk if collective == "alltoall" else 0
        parts.append(values(rank, int(mine[0]) + first, int(mine[-1]) + 1 + first))
    return np.concatenate(parts)


def main(library: str, address: str) -> None:
    """Answer until the driver closes its socket. library: hpcai, or the name of an MPI."""
    import hpcai

    answer_lines(address, Rank(hpcai_library(hpcai.init()) if library == "hpcai" else mpi_library()).answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
