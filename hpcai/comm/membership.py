"""All ranks that live: those that train and, behind them, spare ones that wait.

Those that train are the first ranks and the spare ones the last, from the start to the end: MPI_Comm_shrink keeps the order, and
the lowest spare ranks get the places of those that failed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from hpcai.comm.diagnosis import watch
from hpcai.comm.launch import host
from hpcai.comm.wire import Pending, Wire
from hpcai.errors import RankFailed, UsageError, counted

T = TypeVar("T")

LOOK_S, ANSWER_S = 0.005, 5.0
"""How long a spare rank sleeps between two looks whether it is wanted, and how long it may take to answer at the end."""


def training_ranks(ranks: int, spares: int) -> int:
    """Return how many ranks train. Raises UsageError if they are too few."""
    if spares and ranks - spares < 2:
        raise UsageError(
            f"--spare-ranks {spares} of {counted(ranks, 'rank')}: 2 at least must train, so that a spare one can learn "
            f"from another; start {2 + spares - ranks} more"
        )
    return ranks - spares


@dataclass
class Membership:
    """The wire of all ranks, how many are to train, how many waited at the start, and how many wait now.

    given_up: the failures of waits, until a step is done. Their frames keep the arrays alive in which a message may still
    arrive: MPI drops what comes late, but for the rest of a message too long for one packet.
    """

    world: Wire
    wanted: int
    at_first: int = 0
    spares: int = 0
    given_up: list[RankFailed] = field(default_factory=list)

    def shrink(self) -> None:
        """Go on among the ranks that live. Collective over them."""
        self.world.revoke()
        self.world = self.world.shrink()

    def training(self, spare: bool = False) -> Wire | None:
        """The wire of those that train, None for one that does not; counts who is there. Collective.

        Raises: RankFailed, on all alike.
        """
        if not self.at_first:
            return self.world

        def counted() -> Wire | None:
            told = self.world.exchange(host.here(0) if spare else None)
            watch.beside[:] = [place for place in told if place is not None]
            self.spares = len(watch.beside)
            return self._first(self.world.size - self.spares)

        return self._voted(counted)

    @property
    def places(self) -> int:
        """The number of spare ranks that are wanted."""
        return min(self.spares, self.wanted - (self.world.size - self.spares))

    def with_spares(self) -> Wire | None:
        """The wire of those that train and the spare ranks that are wanted, None for one that is not. Collective.

        Raises: RankFailed, on all alike.
        """
        return self._voted(lambda: self._first(self.world.size - self.spares + self.places))

    def _first(self, count: int) -> Wire | None:
        if count == self.world.size:
            return self.world
        return self.world.split(0 if self.world.rank < count else None, self.world.rank)

    def _voted(self, make: Callable[[], Wire | None]) -> Wire | None:
        """Return what this rank made if all ranks could make theirs; else a rank with the new wire would wait on it for one
        without.
        """
        made = voted(self.world, make, self.given_up)
        if made is None:
            raise RankFailed("another rank failed while ranks found out who trains")
        return made[0]

    def run_ended(self) -> bool:
        """On a spare rank: wait; True when the run has ended, False when a rank failed."""
        word = np.zeros(1, np.int64)
        try:
            pending = self.world.receive(word, 0)
            while not pending.done():
                time.sleep(LOOK_S)
            self.world.send(word, 0).wait()
        except RankFailed:
            return bool(word[0])
        return True

    def close(self) -> None:
        """On those that train, when the run has ended, well or not: let the spare ranks end too, for which rank 0 waits a little,
        as they would take its end for a failure.
        """
        words, answers = np.ones((self.spares, 1), np.int64), list[Pending]()
        for word, rank in zip(words, range(self.world.size - self.spares, self.world.size), strict=True):
            with contextlib.suppress(RankFailed):
                if self.world.rank == 0:
                    self.world.send(word, rank).wait()
                    answers.append(self.world.receive(word, rank))
        end = time.monotonic() + ANSWER_S
        while answers and time.monotonic() < end:
            answers = [answer for answer in answers if not _over(answer)]
            time.sleep(LOOK_S)
        if answers:
            watch.end_frozen("the end")


def voted(wire: Wire, make: Callable[[], T], given_up: list[RankFailed]) -> tuple[T] | None:
    """Return (what this rank made,) if all ranks that live could make theirs; None on all alike if one met a failure: a rank that
    had made its part would otherwise wait in it for one that has not. Collective.

    given_up: errors whose arrays must live on (see Membership).
    """
    made = None
    try:
        made = (make(),)
    except RankFailed as error:
        given_up.append(error)
        wire.revoke()
    return made if wire.all_agree(made is not None) else None


def _over(answer: Pending) -> bool:
    try:
        return answer.done()
    except RankFailed:
        return True
