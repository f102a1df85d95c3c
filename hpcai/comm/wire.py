"""The protocol of what carries bytes between ranks. MPI and queues between threads implement it (wires/)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hpcai.xp import Array

ALIGNMENT = 4096
"""Memory that ranks share begins at a multiple of so many bytes: a page."""


class Pending(Protocol):
    """A send or receive under way; the buffer belongs to the wire until `wait` returns."""

    def wait(self) -> None:
        """Return when the buffer may be used again."""

    def done(self) -> bool:
        """True if `wait` would return at once."""


class Expected(Protocol):
    """A message of which the array cannot be received before its header is here."""

    header_here: Pending

    def take_array(self) -> None:
        """Receive the array, now that its header is here."""


class Wire(Protocol):
    """Point-to-point messages in order for each pair of ranks, and small agreements."""

    rank: int
    size: int
    ranks: Sequence[int]
    """What these ranks are called in the world: by that number messages name them."""
    timeout_s: float
    """How long a wait for another rank may take."""
    waiting_since: float
    """When this rank began to wait for a message, by time.monotonic(); 0 while it does not wait."""
    expected: dict[Any, list[Expected]]
    """Messages whose headers are not here yet, by where they come from (see message.py)."""
    waited_s: float
    """Seconds that this rank has waited in `agree`, for others to come."""

    def send(self, x: Array, to: int, lane: int = 0) -> Pending:
        """Start to send a contiguous array of at most 2**30 bytes. Messages are in order within a lane (0 to 5)."""

    def receive(self, x: Array, source: int, lane: int = 0) -> Pending:
        """Start to receive into a contiguous array; the sender's has as many bytes."""

    def agree(self, key: Sequence[int]) -> bool:
        """True on all ranks if `key` (integers below 2**62) is the same on all, else False on all."""

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's `value` (small, pickled), in rank order."""

    def split(self, color: int | None, key: int) -> Wire | None:
        """A wire among the ranks with the same color, ordered by (key, rank); None where color is None."""

    def node_color(self) -> int:
        """An integer that is equal on ranks which share memory."""

    def shared(self, bytes_per_rank: int) -> Array | None:
        """Zeroed memory of size * bytes_per_rank bytes, aligned, that all ranks address, or None on all where there is none."""

    def on_failure(self, release: Callable[[], None]) -> None:
        """Have `release` called when another rank is known to have failed, if this wire ever knows."""

    def revoke(self) -> None:
        """End all waits of all ranks on this wire, and on those split from it that this rank is in, with RankFailed. For wires
        that outlive ranks.
        """

    def shrink(self) -> Wire:
        """A wire among the ranks that live, in their old order. All of them call it, after `revoke`."""

    def grow(self, count: int, command: Sequence[str]) -> Wire:
        """A wire of all ranks and, behind them, `count` new ones, which are started with this command."""

    def connect_all(self) -> None:
        """Exchange an empty message with every other rank, after `grow`, so that each can tell all others of a failure later."""

    def all_agree(self, fine: bool) -> bool:
        """True on all ranks that live if all of them say so and none has failed; on a revoked wire too."""

    def why_not_elastic(self, growing: bool) -> str:
        """Describe why ranks cannot outlive others on this wire, or new ranks cannot join; empty if they can."""

    def serves_threads(self) -> bool:
        """True if any thread may use it, one at a time."""

    def describe(self) -> str:
        """The name and version of what carries the bytes."""


def begin(expected: dict[Any, list[Expected]]) -> None:
    """Receive the arrays whose headers are here, in the order of their places. Whoever waits for a message calls this too: a rank
    at the other end may wait until its array is received.
    """
    for place, ahead in list(expected.items()):
        while ahead and ahead[0].header_here.done():
            ahead.pop(0).take_array()
        if not ahead:
            expected.pop(place, None)
