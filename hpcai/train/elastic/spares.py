"""The recovery on a spare rank, which waits and takes the place of a failed rank. elastic.recover makes the matching calls on the
training ranks.

Spare ranks run from the start, so a recovery starts no process. A failure costs as much as continuing with fewer ranks, and the
transfer of the state.
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
    """The state with which a spare rank continues as a training rank."""

    reserve: Membership
    comm: Communicator
    told: newcomers.Invitation
    dataset: Dataset
    replica: Replica


def stand_by(options: Options, reserve: Membership) -> Seat:
    """Wait until this rank is needed, and return its state. If the run ends first, the process exits here."""
    for name in (*options.signals, "INT"):  # training ranks handle signals for all
        signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)
    stall.outlive()
    while not reserve.run_ended():
        with limits.limited("the recovery from a failure", RanksLost.exit_code):
            seat = _recovered(reserve)
        if seat is not None:
            return seat
    raise SystemExit(limits.quit())


def _recovered(reserve: Membership) -> Seat | None:
    """Return this rank's place among the training ranks after a failure; None if it stays spare."""
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
    """Take part while the training ranks leave out failed ranks. Return whether no further rank failed meanwhile."""

    def counted() -> None:
        reserve.training(spare=True)
        if reserve.spares == reserve.world.size:
            _end(reserve)

    return voted(reserve.world, counted, reserve.given_up) is not None


def _seat(reserve: Membership) -> Seat | None:
    """Return a place among the training ranks; None if this rank is not needed. Raises: RankFailed."""
    wire = reserve.with_spares()
    if wire is None:
        return None
    comm = Communicator(wire)
    return Seat(reserve, comm, *newcomers.join(comm))


def _end(reserve: Membership) -> None:
    """End the process: no training rank is left from which a spare rank could copy the state."""
    if reserve.world.rank == 0:
        print("hpcai.train: all training ranks have ended, so the spare ranks end too", file=sys.stderr, flush=True)
    limits.quit(RanksLost.exit_code)
