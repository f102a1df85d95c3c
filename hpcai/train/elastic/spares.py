"""A spare rank's side: it waits, and takes the place of a rank that failed. The others' side is elastic.recover, call by call.

Spare ranks are there from the start, so nothing has to be started while a job recovers: a failure costs what it costs to go on
with fewer ranks, and the transfer of the state.
"""

from __future__ import annotations

import signal
import sys
from typing import NamedTuple

from hpcai.comm import limits
from hpcai.comm.communicator import Communicator
from hpcai.comm.diagnosis import stall
from hpcai.comm.membership import Membership, voted
from hpcai.data.dataset import Dataset
from hpcai.errors import RanksLost
from hpcai.train.elastic import newcomers
from hpcai.train.options.options import Options
from hpcai.train.replica import Replica


class Seat(NamedTuple):
    """The state with which a spare rank goes on."""

    reserve: Membership
    comm: Communicator
    told: newcomers.Invitation
    dataset: Dataset
    replica: Replica


def stand_by(options: Options, reserve: Membership) -> Seat:
    """Wait until this rank is wanted. Where it is not, the process ends here, with the run."""
    for name in (*options.signals, "INT"):  # those that train answer for all
        signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)
    stall.outlive()
    while not reserve.run_ended():
        with limits.limited("the recovery from a failure", RanksLost.exit_code):
            seat = _recovered(reserve)
        if seat is not None:
            return seat
    raise SystemExit(limits.quit())


def _recovered(reserve: Membership) -> Seat | None:
    """This rank's place among those that train, if it has one now."""
    while True:
        reserve.shrink()
        if not _stood_aside(reserve):
            continue
        if not reserve.places:
            return None
        seat = voted(reserve.world, lambda: _seat(reserve), reserve.given_up)
        if seat is not None:
            reserve.spares -= reserve.places
            return seat[0]


def _stood_aside(reserve: Membership) -> bool:
    """While those that train go on without the ranks that failed. True if they could."""

    def counted() -> None:
        reserve.training(spare=True)
        if reserve.spares == reserve.world.size:
            _end(reserve)

    return voted(reserve.world, counted, reserve.given_up) is not None


def _seat(reserve: Membership) -> Seat | None:
    """Return a place among the ranks that train; None if this rank is not wanted. Raises: RankFailed."""
    wire = reserve.with_spares()
    if wire is None:
        return None
    comm = Communicator(wire)
    return Seat(reserve, comm, *newcomers.join(comm))


def _end(reserve: Membership) -> None:
    """Nobody is left to learn from."""
    if reserve.world.rank == 0:
        print("hpcai.train: all ranks that trained have ended, so the spare ones end too", file=sys.stderr, flush=True)
    limits.quit(RanksLost.exit_code)
