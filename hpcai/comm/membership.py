"""All ranks that live: the ranks that train and, behind them, spare ranks that wait.

The training ranks are always the first and the spare ranks the last: MPI_Comm_shrink keeps the order, and the lowest spare ranks
replace ranks that failed.
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
"""Seconds that a spare rank sleeps between two looks whether it is needed, and that its answer at the end may take."""


def training_ranks(ranks: int, spares: int) -> int:
    """How many of `ranks` train if `spares` wait. Raises: UsageError if fewer than 2 would train beside spare ranks."""
    if spares and ranks - spares < 2:
        raise UsageError(
            f"--spare-ranks {spares} of {counted(ranks, 'rank')}: 2 at least must train, so that a spare rank can copy the "
            f"state of another; start {2 + spares - ranks} more"
        )
    return ranks - spares


@dataclass
class Membership:
    """Who trains and who waits.

    world: the wire of all ranks that live. wanted: how many ranks are to train. at_first, spares: how many ranks waited at the
    start, and how many wait now. given_up: the errors of failed waits, kept until a step is done. Their frames keep arrays alive
    into which a message may still arrive: MPI drops late messages, but not the rest of one that is too long for a packet.
    """

    world: Wire
    wanted: int
    at_first: int = 0
    spares: int = 0
    given_up: list[RankFailed] = field(default_factory=list)

    def shrink(self) -> None:
        """Replace `world` by a wire of the ranks that live. Collective over them."""
        self.world.revoke()
        self.world = self.world.shrink()

    def training(self, spare: bool = False) -> Wire | None:
        """The wire of the training ranks, or None on a spare rank (`spare`); counts the spare ranks. Collective.

        Raises: RankFailed, on all ranks alike.
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
        """How many spare ranks are needed for `wanted` ranks to train."""
        return min(self.spares, self.wanted - (self.world.size - self.spares))

    def with_spares(self) -> Wire | None:
        """The wire of the training ranks and of the spare ranks that are needed; None on the other spare ranks. Collective.

        Raises: RankFailed, on all ranks alike.
        """
        return self._voted(lambda: self._first(self.world.size - self.spares + self.places))

    def _first(self, count: int) -> Wire | None:
        if count == self.world.size:
            return self.world
        return self.world.split(0 if self.world.rank < count else None, self.world.rank)

    def _voted(self, make: Callable[[], Wire | None]) -> Wire | None:
        """What `make` gives. Raises: RankFailed on all ranks if it failed on one, since others would wait for that one."""
        made = voted(self.world, make, self.given_up)
        if made is None:
            raise RankFailed("another rank failed while the ranks agreed on who trains")
        return made[0]

    def run_ended(self) -> bool:
        """On a spare rank: wait until the run has ended (True) or a rank has failed (False)."""
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
        """On training ranks, when the run has ended, well or not: let the spare ranks end too. Rank 0 waits ANSWER_S at most for
        their answers, since they would take its end for a failure.
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
    """What `make` gives, in a tuple; None on all ranks alike if it met a failed rank on one of them. Collective.

    Without the vote a rank on which `make` succeeded would wait for one on which it failed. given_up: receives the error, whose
    arrays must live on (see Membership).
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
