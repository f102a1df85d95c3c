"""The methods of a communicator that reducers and algorithms call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from hpcai.comm.wire import Wire
from hpcai.xp import Array


class Collectives(Protocol):
    """Collectives on arrays, as Communicator has them: what a reducer needs."""

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


class Group(Collectives, Protocol):
    """Ranks that can be split into smaller groups, on a wire: what an algorithm of several levels needs."""

    wire: Wire

    def reduce_scatter(self, x: Array, op: str = "sum") -> Array:
        """As Communicator.reduce_scatter."""

    def allgather_object(self, value: Any) -> list[Any]:
        """As Communicator.allgather_object."""

    def split(self, color: int | None) -> Group | None:
        """As Communicator.split."""

    def split_by_node(self) -> Group:
        """As Communicator.split_by_node."""
