"""Ranks that come in place of others: spare ones, which are there already, or new ones, which are started.

They are told everything by rank 0, and get their part of the state from their peers' memory.
"""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

from hpcai.comm.communicator import Communicator
from hpcai.comm.launch import cores
from hpcai.comm.membership import voted
from hpcai.data.dataset import Dataset
from hpcai.errors import LaunchError, RankFailed
from hpcai.train.history import Progress
from hpcai.train.inputs import load_alone, share
from hpcai.train.options.options import Options
from hpcai.train.replica import Decided, Replica
from hpcai.train.run import Part, Run
from hpcai.train.state import transfer
from hpcai.xp import Array

QUIET_S = 0.25
"""How long nobody may fail before new ranks are started. Ranks often fail a moment after one another, and where one fails while
Open MPI starts others it waits for ever, its launcher too.
"""


def use_spares(run: Run) -> bool:
    """Give the places of ranks that failed to spare ones, where there are any. Collective with those (spares.py).

    False on all if another rank failed meanwhile: then the others are to be found once more.
    """
    reserve = run.reserve
    if not reserve.places:
        return True

    def welcomed() -> Part:
        wire = reserve.with_spares()
        assert wire is not None
        return _welcomed(run, Communicator(wire))

    part = voted(reserve.world, welcomed, reserve.given_up)
    if part is None:
        return False
    reserve.spares -= reserve.places
    run.switch_to(*part)
    return True


def spawn_ranks(run: Run) -> bool:
    """Start as many ranks as are lacking, and give them a part. Where they do not come, go on without. Collective.

    False on all if a rank failed meanwhile that was there before: then the others are to be found once more.
    """
    wire, larger, failure = run.reserve.world, None, "a new one failed"
    time.sleep(QUIET_S)
    if not wire.all_agree(True):
        return False
    try:
        larger = wire.grow(run.reserve.wanted - run.comm.size, [sys.executable, "-m", "hpcai.train.join"])
    except (RankFailed, LaunchError) as error:
        failure = str(error)
    if not wire.all_agree(larger is not None):  # with nobody missing, so that all vote with the new ones or none does
        if larger is not None:
            larger.revoke()
    elif larger is not None:
        part = voted(larger, lambda: _welcomed(run, Communicator(larger)), run.reserve.given_up)
        if part is not None:
            run.reserve.world = larger
            run.switch_to(*part)
            return True
    if not wire.all_agree(True):
        return False
    run.reporter.say(f"no ranks came in place of those that failed ({failure})")
    return True


def _welcomed(run: Run, comm: Communicator) -> Part:
    """Give the last ranks of `comm`, which are new, options, data, state and place. Collective, with `join` there."""
    comm.wire.connect_all()
    now = run.progress, run.replica.decided, run.counted
    before = run.reporter.recoveries, run.lost, run.failed
    share_of_cores, token = cores.core_share(), run.reporter.token
    told = Invitation(run.options, *now, run.reserve.wanted, share_of_cores, *before, token, run.in_script)
    comm.allgather_object(told)
    share(comm, lambda: run.dataset)
    alive = set(range(run.comm.size))
    fresh = transfer.rebuilt(run.options, run.dataset, comm, run.replica, alive, run.replica.decided, joined=True)
    return Part(comm, fresh, run.progress)


class Invitation(NamedTuple):
    """The first message to a new rank."""

    options: Options
    progress: Progress
    decided: Decided
    counted: Array
    wanted: int
    cores: int
    recoveries: list[dict[str, Any]]
    lost: list[int]
    failed: float
    token: str
    """Of the run's locks."""
    in_script: bool
    """As Run has it."""


def join(comm: Communicator) -> tuple[Invitation, Dataset, Replica]:
    """Receive the state with which a new rank begins, from the others. Collective; the others then vote whether it goes on with
    them.
    """
    comm.wire.connect_all()
    told = comm.allgather_object(None)[0]
    assert isinstance(told, Invitation)
    cores.limit_threads(told.cores)
    dataset = share(comm, lambda: None, lambda: load_alone(told.options))
    return told, dataset, transfer.rebuilt(told.options, dataset, comm, None, set(), told.decided, joined=True)
