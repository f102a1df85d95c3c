"""The protocol of a wire, which carries bytes between ranks. wires/ has two: MPI, and queues between threads."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hpcai.xp import Array

ALIGNMENT = 4096
"""Memory that ranks share begins at a multiple of this many bytes: a page."""


class Pending(Protocol):
    """A send or receive under way; the buffer belongs to the wire until `wait` returns."""

    def wait(self) -> None:
        """Return when the buffer may be used again."""

    def done(self) -> bool:
        """True if `wait` would return at once."""


class Expected(Protocol):
    """A message whose array can be received only when its header is here."""

    header_here: Pending

    def take_array(self) -> None:
        """Receive the array, once its header is here."""


class Wire(Protocol):
    """Point-to-point messages, in order for each pair of ranks, and agreement on small values."""

    rank: int
    size: int
    ranks: Sequence[int]
    """The numbers of these ranks in the world, by which messages to people name them."""
    timeout_s: float
    """How many seconds a wait for another rank may take."""
    waiting_since: float
    """When this rank began to wait for a message, by time.monotonic(); 0 while it does not wait."""
    expected: dict[Any, list[Expected]]
    """Messages whose headers are not here yet, by wire, source and lane (see message.py)."""
    waited_s: float
    """Seconds that this rank has waited in `agree`, for others to come."""

    @property
    def under_way(self) -> array[int] | None:
        """How many messages move only while this rank waits for a message or calls `progress`; None if all move by themselves."""

    def send(self, x: Array, to: int, lane: int = 0) -> Pending:
        """Start to send a contiguous array of at most 2**30 bytes. Messages are in order within a lane (0 to 5)."""

    def receive(self, x: Array, source: int, lane: int = 0) -> Pending:
        """Start to receive into a contiguous array, which has as many bytes as the sender's."""

    def progress(self) -> None:
        """Move the messages that are under way, while this rank waits elsewhere."""

    def agree(self, key: Sequence[int]) -> bool:
        """True on all ranks if `key` (integers below 2**62) is the same on all, else False on all."""

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's `value` (small, pickled), in rank order."""

    def split(self, color: int | None, key: int) -> Wire | None:
        """A wire among the ranks with the same color, ordered by (key, rank); None where color is None."""

    def node_color(self) -> int:
        """An integer that is equal on ranks which share memory."""

    def shared(self, bytes_per_rank: int) -> Array | None:
        """Zeroed memory of size * bytes_per_rank bytes, aligned, that all ranks address; None on all if it cannot be had."""

    def on_failure(self, release: Callable[[], None]) -> None:
        """Register `release`, which is called when this wire finds that another rank has failed."""

    def revoke(self) -> None:
        """End all waits of all ranks on this wire, and on the wires split from it that this rank is in, with RankFailed. Only for
        wires whose ranks may outlive others.
        """

    def shrink(self) -> Wire:
        """A wire among the ranks that live, in their old order. All of them call it, after `revoke`."""

    def grow(self, count: int, command: Sequence[str]) -> Wire:
        """A wire of all ranks and, behind them, `count` new ranks, which are started with this command."""

    def connect_all(self) -> None:
        """Exchange an empty message with every other rank, after `grow`, so that each can tell all others of a failure later."""

    def all_agree(self, fine: bool) -> bool:
        """True on all ranks that live if `fine` is True on all of them and no rank has failed. Works on a revoked wire too."""

    def why_not_elastic(self, growing: bool) -> str:
        """Why ranks cannot outlive others on this wire, or (`growing`) new ranks cannot be started; empty if they can."""

    def serves_threads(self) -> bool:
        """True if any thread may use the wire, one at a time."""

    def describe(self) -> str:
        """The name and version of the library that carries the bytes."""


def begin(expected: dict[Any, list[Expected]]) -> None:
    """Start to receive the arrays whose headers are here, in order for each source and lane. Waits for messages call this, since
    the rank at the other end may wait until its array is received.
    """
    for place, ahead in list(expected.items()):
        while ahead and ahead[0].header_here.done():
            ahead.pop(0).take_array()
        if not ahead:
            expected.pop(place, None)
