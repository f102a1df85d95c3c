"""Going on when ranks fail: from memory, without them or with others in their place, repeating the step in flight at most.

A step is *decided* when its last sum over ranks is done. Whoever has seen that knows that every rank has its sums of gradients,
since a sum is not done before all have taken part. So after a failure there are two cases, and the ranks that live find out in
one exchange which it is: someone has seen the step decided, and then all finish it, each with the gradients that it has; or
nobody has, and then no parameter was touched and all repeat it.

Of ZeRO's shards the lost ones come from the right neighbour (parallel/redundancy.py). What a lost rank still owed to the
gradient by its compression is lost with it. Sources: ULFM, the fault-tolerance chapter of the MPI Forum (revoke, shrink, agree;
Bland et al., IJHPCA 27(3), 2013, doi:10.1177/1094342013488238).
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from hpcai.comm import cores, job, stall
from hpcai.comm.communicator import Communicator
from hpcai.data.dataset import Dataset
from hpcai.errors import LaunchError, NonFiniteError, RankFailed, RanksLost, UsageError
from hpcai.parallel import zero
from hpcai.train import memories, precision, resume, step
from hpcai.train.config import Options
from hpcai.train.inputs import share
from hpcai.train.replica import Replica, replica
from hpcai.train.run import Run
from hpcai.train.step import Report, Totals
from hpcai.xp import Array

QUIET_S = 0.25
"""How long nobody may fail before new ranks are started. Ranks often fail a moment after one another, and where one fails while
Open MPI starts others it waits for ever, its launcher too.
"""


class Told(NamedTuple):
    """What a rank that lives tells the others: its rank until now, and the last step that it saw decided."""

    rank: int
    decided: tuple[int, Totals] | None


class Adopted(NamedTuple):
    """What a run goes on with."""

    comm: Communicator
    mine: Replica
    progress: resume.Progress


def recover(run: Run) -> None:
    """Make `run` one of the ranks that live, at the same step on all; with --elastic grow, have others started in place of
    those that failed. Called by each rank that met a failure.

    Raises: RanksLost, on all alike, where the only copies of a shard were on ranks that failed.
    """
    began, before, run.failed = perf_counter(), run.comm, time.time()
    with job.limited("the recovery from a failure", RanksLost.exit_code):
        _shrink(run)
        if run.options.elastic == "grow":
            with job.limited("the start of new ranks", RanksLost.exit_code, job.JOINING_S):
                _grow(run)
    job.adopt(run.comm)
    stall.watch_over(run.comm)
    run.saver, run.written = run.saver.moved(run.mine, run.comm), 0  # what is due here is written by all, if it is not complete
    run.resized()
    seconds = perf_counter() - began
    run.reporter.moved(run.comm, run.mine, run.progress)
    run.reporter.recovered(run.lost, before.size, seconds)


def _shrink(run: Run) -> None:
    """Go on among the ranks that live."""
    wire, adopted, comm = run.comm.wire, None, run.comm
    while adopted is None:
        wire.revoke()
        wire = wire.shrink()
        try:
            comm = Communicator(wire)
            adopted = _rebuilt(run, comm)
        except RankFailed:  # another one, meanwhile
            wire.revoke()
        except (RanksLost, NonFiniteError):
            job.adopt(comm)
            raise
        if not wire.all_fine(adopted is not None):
            adopted = None
    run.comm, run.mine, run.progress = adopted


def _rebuilt(run: Run, comm: Communicator) -> Adopted:
    """The ranks' parts for fewer of them, at the same step. Collective. `run` stays usable for another attempt."""
    told = comm.exchange(Told(run.comm.rank, run.mine.decided))
    alive = {one.rank for one in told}
    run.lost = [rank for rank in range(run.comm.size) if rank not in alive]
    _require_shards(run, alive)
    _level(run, told)
    histories = comm.exchange(dataclasses.asdict(run.progress))
    progress = resume.Progress(**max(histories, key=lambda one: len(one["history"])))
    fresh = replica(_unmeshed(run.options), run.dataset, comm)
    _carry_over(run.mine, fresh, alive)
    return Adopted(comm, fresh, progress)


def _grow(run: Run) -> None:
    """Start as many ranks as the run began with lacks, and give them a part. Where they do not come, go on without."""
    wire, larger, adopted, failure = run.comm.wire, None, None, ""
    time.sleep(QUIET_S)
    if not wire.all_fine(True):
        return  # the next step meets the failure, and tries again
    try:
        larger = wire.grow(run.ranks - run.comm.size, [sys.executable, "-m", "hpcai.train.join"])
    except (RankFailed, LaunchError) as error:
        failure = str(error)
    if not wire.all_fine(larger is not None):  # with nobody missing, so that all vote with the new ones or none does
        if larger is not None:
            larger.revoke()
    elif larger is not None:
        try:
            adopted = _welcomed(run, Communicator(larger))
        except RankFailed as error:
            failure = str(error)
            larger.revoke()
        if not larger.all_fine(adopted is not None):
            adopted = None
    if adopted is not None:
        run.comm, run.mine, run.progress = adopted
    else:
        run.reporter.say(f"no ranks came in place of those that failed ({failure or 'others failed meanwhile'})")


def _welcomed(run: Run, comm: Communicator) -> Adopted:
    """Give the last ranks of `comm`, which are new, options, data, state and place. Collective, with `join` there."""
    comm.wire.greet()
    before = run.reporter.recoveries, run.lost, run.failed
    comm.exchange(Invitation(run.options, run.progress, run.mine.decided, run.counted, run.ranks, cores.core_share(), *before))
    share(comm, lambda: run.dataset)
    fresh = replica(_unmeshed(run.options), run.dataset, comm)
    _carry_over(run.mine, fresh, set(range(run.comm.size)))
    _equal(fresh)
    return Adopted(comm, fresh, run.progress)


class Invitation(NamedTuple):
    """What a new rank is told first."""

    options: Options
    progress: resume.Progress
    decided: tuple[int, Totals] | None
    counted: Array
    ranks: int
    cores: int
    recoveries: list[dict[str, Any]]
    lost: list[int]
    failed: float


def join(comm: Communicator) -> tuple[Invitation, Dataset, Replica]:
    """What a new rank begins with, from the others. Collective; the others then vote whether it is to go on with them."""
    comm.wire.greet()
    told = comm.exchange(None)[0]
    assert isinstance(told, Invitation)
    cores.limit_threads(told.cores)
    dataset = share(comm, lambda: None)
    fresh = replica(_unmeshed(told.options), dataset, comm)
    if fresh.zero:
        for array in (fresh.params, *fresh.state.values()):
            whole = np.zeros(fresh.model.layout.size, array.dtype)
            _add_bits(whole, comm)
            array[:] = whole if array is fresh.params else zero.scatter(whole, fresh.owned)
        if fresh.backup is not None:
            fresh.backup.renew(fresh.state)
    _equal(fresh)
    fresh.decided, fresh.updated = told.decided, True
    return told, dataset, fresh


def _equal(fresh: Replica) -> None:
    """Give new ranks what all others have alike. Collective."""
    dp = fresh.mesh.dp
    if not fresh.zero:
        for array in (fresh.params, *fresh.state.values()):
            dp.broadcast(array)
    if fresh.half is not None:
        fresh.half.scale, fresh.half.good = dp.exchange((fresh.half.scale, fresh.half.good))[0]
        precision.publish(fresh)
    memories.equal(fresh)


def _unmeshed(options: Options) -> Options:
    """Options for any number of ranks."""
    return dataclasses.replace(options, mesh="")


def _require_shards(run: Run, alive: set[int]) -> None:
    if not run.mine.zero:
        return
    size = run.comm.size
    copies = [{rank, (rank + 1) % size} if run.mine.backup is not None else {rank} for rank in range(size)]
    lost = [rank for rank in range(size) if not copies[rank] & alive]
    if lost:
        raise RanksLost(
            f"rank {lost[0]}'s share of the optimizer state is lost: the ranks that had a copy failed together; start again with "
            "--resume auto to go on from the last checkpoint"
        )


def _level(run: Run, told: list[Told]) -> None:
    """Bring this rank to the step of the others: finish a decided step, or take back what an undecided one has changed."""
    mine, at = run.mine, run.progress.step
    decided = max((one.decided for one in told if one.decided is not None), key=lambda one: one[0], default=None)
    if decided is not None and decided[0] == at:
        totals = decided[1]
        if mine.half is None and not math.isfinite(totals.grad_norm):
            raise NonFiniteError(f"the gradient became infinite in step {at + 1}")
        if mine.decided is None or mine.decided[0] != at:
            mine.decided, mine.updated = decided, False
        if not mine.updated:
            step.update(mine, totals, at, run.schedule(at))
        run.completed(Report(totals.loss_sum, totals.targets, totals.grad_norm, totals.comm_s, totals.comm_s, totals.votes))
    elif mine.remembered is not None and mine.remembered[0] == at:
        mine.reducer_states[:] = memories.copied(mine.remembered[1])


def _carry_over(old: Replica, fresh: Replica, alive: set[int]) -> None:
    """Fill a replica among other ranks from the one before. Collective."""
    for name, array in {"params": fresh.params, **fresh.state}.items():
        kept = old.params if name == "params" else old.state[name]
        if not old.zero:
            array[:] = kept
            continue
        whole = _whole(old, name, kept, alive, fresh.mesh.dp)
        array[:] = whole if name == "params" else zero.scatter(whole, fresh.owned)
    memories.carry_over(old, fresh)
    if fresh.half is not None and old.half is not None:
        fresh.half.scale, fresh.half.good = old.half.scale, old.half.good
        precision.publish(fresh)
    if fresh.backup is not None:
        fresh.backup.renew(fresh.state)
    fresh.votes, fresh.decided, fresh.updated = old.votes, old.decided, True


def _whole(old: Replica, name: str, kept: Array, alive: set[int], comm: Communicator) -> Array:
    """A flat array from the shards of the ranks that live, and the copies that they have of others. Collective.

    Added as integers, so that every bit stays: each element is zero on all ranks but one.
    """
    whole = np.zeros(old.model.layout.size, kept.dtype)
    for piece in old.owned:
        whole[piece.flat] = kept[piece.flat if name == "params" else piece.shard]
    if old.backup is not None and old.backup.left not in alive:
        for piece in old.backup.owned:
            whole[piece.flat] = old.params[piece.flat] if name == "params" else old.backup.state[name][piece.shard]
    _add_bits(whole, comm)
    return whole


def _add_bits(whole: Array, comm: Communicator) -> None:
    comm.allreduce(whole.view(np.int32 if whole.itemsize == 4 else np.int64))


def remember(mine: Replica, at: int) -> None:
    """Keep what step `at` changes before it is decided, so that the step can be repeated: what reducers remember."""
    if mine.reducers or mine.grain:
        mine.remembered = at, memories.copied(mine.reducer_states, mine.remembered[1] if mine.remembered else None)


def check(options: Options, comm: Communicator) -> None:
    """Raise UsageError where a run cannot outlive ranks."""
    if options.elastic == "never":
        return
    reason = comm.wire.why_not_elastic(options.elastic == "grow")
    if not reason and not comm.notices_ends:
        reason = "ranks cannot see another's end here (that wants Linux 5.3 and one PID namespace); HPCAI_NODE=0 leaves it to MPI"
    if reason:
        raise UsageError(f"--elastic {options.elastic}: {reason}")
