"""What a reducer is, and what it has done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from hpcai.xp import Array

State = Any


class Collectives(Protocol):
    """What a reducer asks of a communicator."""

    rank: int
    size: int

    def allreduce(self, x: Array, op: str = "sum", *, algorithm: str = "auto") -> Array:
        """As Communicator.allreduce."""

    def allgather(self, x: Array) -> Array:
        """As Communicator.allgather."""

    def allgather_each(self, arrays: Iterable[Array]) -> Iterator[Array]:
        """As Communicator.allgather_each."""

    def alltoall(self, x: Array) -> Array:
        """As Communicator.alltoall."""


class Reduced(NamedTuple):
    """The mean over all ranks, the same bytes on each; what this rank's array has lost on the way (None: nothing); the state.

    Nothing is lost: the mean over ranks of (x - residual) is `mean`.
    """

    mean: Array
    residual: Array | None
    state: State


class Reducer(NamedTuple):
    """A way to take the mean of an array over all ranks.

    init(x) -> the state for arrays like x. reduce(x, comm, state) -> Reduced; x is flat f32, may be overwritten, and the mean
    may lie in it. keep(x, memory, comm, state) -> Reduced is the mean of x + memory, after which the memory, written in the same
    pass, is the residual; where a reducer has none, `error_feedback` adds and copies.
    """

    name: str
    init: Callable[[Array], State]
    reduce: Callable[[Array, Collectives, State], Reduced]
    keep: Callable[[Array, Array, Collectives, State], Reduced] | None = None
