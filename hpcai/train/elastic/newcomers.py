"""Replacements for ranks that failed: spare ranks, which wait from the start, or new ranks, which are started.

Rank 0 sends a replacement the options, the data and the progress. Its part of the state comes from the memory of other ranks.
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
"""New ranks are started after this long without a failure. Ranks often fail within moments of one another. If a rank fails while
Open MPI starts others, Open MPI and its launcher wait for ever.
"""


def use_spares(run: Run) -> bool:
    """Give the places of failed ranks to spare ranks, if there are any. Collective; the spare ranks take part (spares.py).

    Return False, on all ranks, if another rank failed meanwhile. The caller must then find the living ranks again.
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
    """Start as many ranks as are missing, and give them a part. Continue without them if they do not start. Collective.

    Return False, on all ranks, if one of the earlier ranks failed meanwhile. The caller must then find the living ranks again.
    """
    wire, larger, failure = run.reserve.world, None, "a new one failed"
    time.sleep(QUIET_S)
    if not wire.all_agree(True):
        return False
    try:
        larger = wire.grow(run.reserve.wanted - run.comm.size, [sys.executable, "-m", "hpcai.train.join"])
    except (RankFailed, LaunchError) as error:
        failure = str(error)
    if not wire.all_agree(larger is not None):  # all earlier ranks agree first, so that all vote with the new ranks or none does
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
    run.reporter.say(f"the failed ranks were not replaced ({failure})")
    return True


def _welcomed(run: Run, comm: Communicator) -> Part:
    """Send options, data and state to the new ranks, the last ones of `comm`. Collective; the new ranks call `join`."""
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
    """The token of the run's locks."""
    in_script: bool
    """See Run.in_script."""


def join(comm: Communicator) -> tuple[Invitation, Dataset, Replica]:
    """Receive the state with which a new rank begins. Collective; the other ranks then vote on whether it joins them."""
    comm.wire.connect_all()
    told = comm.allgather_object(None)[0]
    assert isinstance(told, Invitation)
    cores.limit_threads(told.cores)
    dataset = share(comm, lambda: None, lambda: load_alone(told.options))
    return told, dataset, transfer.rebuilt(told.options, dataset, comm, None, set(), told.decided, joined=True)
