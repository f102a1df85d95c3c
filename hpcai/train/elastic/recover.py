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
import time
from time import perf_counter
from typing import NamedTuple

from hpcai.comm import job, limits
from hpcai.comm.communicator import Communicator
from hpcai.comm.diagnosis import stall
from hpcai.comm.membership import voted
from hpcai.errors import NonFiniteError, RanksLost, StallError, UsageError
from hpcai.strategies.mixed import skips_overflow
from hpcai.train import step
from hpcai.train.elastic import newcomers
from hpcai.train.history import Progress
from hpcai.train.options import own_name
from hpcai.train.options.options import Options
from hpcai.train.outcome import Report
from hpcai.train.replica import Decided
from hpcai.train.run import Part, Run
from hpcai.train.state import transfer


class SurvivorReport(NamedTuple):
    """A survivor's message to the others: its former rank, and the last step that it saw decided."""

    rank: int
    decided: Decided


def recover(run: Run) -> None:
    """Make `run` one of the ranks that live, at the same step on all, and give the places of those that failed to spare ranks;
    with --elastic grow, have others started for what is left of them. Called by each rank that met a failure.

    Raises, on all alike: RanksLost, where the only copies of a shard were on ranks that failed; StallError, where for the second
    time a step failed of all that live, so that to repeat it once more is in vain.
    """
    began, before, run.failed = perf_counter(), run.comm.size, time.time()
    names, run.lost = list(range(before)), []
    _find_others(run, names)
    if not run.lost:
        _require_hope(run)
    finish_recovery(run, names)
    run.reporter.recovered(run.lost, before, perf_counter() - began, run.reserve.spares)


def _require_hope(run: Run) -> None:
    at = run.progress.step
    if run.repeated == at:
        job.adopt(run.comm)
        raise StallError(f"ranks waited in vain for each other twice after step {at:,}, though all live; see --stall-timeout")
    run.repeated = at


def finish_recovery(run: Run, names: list[int]) -> None:
    """Complete a recovery once the surviving ranks have found each other, on them and on those that came: start new ranks if some
    are still missing, and rebuild what depends on the ranks. Collective. `names`: the former numbers of the ranks.
    """
    while not _complete(run):
        _find_others(run, names)
    job.adopt(run.comm)
    stall.watch_over(run.comm)
    run.saver, run.written = run.saver.moved(run.replica, run.comm), 0  # what is due here is written by all, unless it is there
    run.resized()
    run.reporter.moved(run.comm, run.replica, run.progress)


def _complete(run: Run) -> bool:
    """False on all alike if another rank failed while new ones were to be started."""
    if run.options.elastic != "grow" or run.comm.size >= run.reserve.wanted:
        return True
    with limits.limited("the start of new ranks", RanksLost.exit_code, job.JOINING_S):
        return newcomers.spawn_ranks(run)


def _find_others(run: Run, names: list[int]) -> None:
    """Go on among the ranks that live and spare ones in the places of those that failed, whose `names` go to run.lost."""
    with limits.limited("the recovery from a failure", RanksLost.exit_code):
        while True:
            failed = _shrink(run)
            run.lost += [name for rank, name in enumerate(names) if rank in failed]
            names[:] = [name for rank, name in enumerate(names) if rank not in failed]
            if newcomers.use_spares(run):
                return


def _shrink(run: Run) -> list[int]:
    """Go on among the ranks that live; returns which failed."""
    reserve, made = run.reserve, None

    def among_those_that_live() -> tuple[Part, list[SurvivorReport]]:
        wire = reserve.training()
        assert wire is not None
        comm = Communicator(wire)
        try:
            reports = comm.allgather_object(SurvivorReport(run.comm.rank, run.replica.decided))
            return _rebuilt(run, comm, reports), reports
        except (RanksLost, NonFiniteError):
            job.adopt(comm)
            reserve.spares = 0  # they hear no word now, and end when nobody is left that trains
            raise

    while made is None:
        reserve.shrink()
        made = voted(reserve.world, among_those_that_live, reserve.given_up)  # None: another one failed, meanwhile
    part, reports = made[0]
    failed = sorted(set(range(run.comm.size)) - {one.rank for one in reports})
    run.switch_to(part)
    run.reporter.moved(run.comm, run.replica, run.progress)
    return failed


def _rebuilt(run: Run, comm: Communicator, reports: list[SurvivorReport]) -> Part:
    """The ranks' parts for fewer of them, at the same step. Collective. `run` stays usable for another attempt."""
    alive = {one.rank for one in reports}
    _require_shards(run, alive)
    _level(run, reports)
    histories = comm.allgather_object(dataclasses.asdict(run.progress))
    progress = Progress(**max(histories, key=lambda one: len(one["history"])))
    fresh = transfer.rebuilt(run.options, run.dataset, comm, run.replica, alive, run.replica.decided, joined=False)
    return Part(comm, fresh, progress)


def _require_shards(run: Run, alive: set[int]) -> None:
    kept, size = run.replica.kept(), run.comm.size
    if all(one.held != "shard" for one in kept):
        return
    copied = any(one.held == "copy" for one in kept)
    lost = [rank for rank in range(size) if not {rank, (rank + 1) % size if copied else rank} & alive]
    if lost:
        raise RanksLost(
            f"rank {lost[0]}'s share of the optimizer state is lost: the ranks that had a copy failed together; start again with "
            "--resume auto to go on from the last checkpoint"
        )


def _level(run: Run, reports: list[SurvivorReport]) -> None:
    """Bring this rank to the step of the others: finish a decided step, or take back what an undecided one has changed."""
    replica, at = run.replica, run.progress.step
    decided = max((one.decided for one in reports if one.decided is not None), key=lambda one: one[0], default=None)
    if decided is not None and decided[0] == at:
        totals = decided[1]
        if not math.isfinite(totals.grad_norm) and not skips_overflow(replica.state):  # update would ask all ranks where
            raise NonFiniteError(f"the gradient became infinite in step {at + 1}")
        if replica.decided is None or replica.decided[0] != at:
            replica.decided, replica.updated = decided, False
        if not replica.updated:
            step.update(replica, totals, at, run.schedule(at))
        run.completed(Report(totals.loss_sum, totals.targets, totals.grad_norm, totals.comm_s, totals.comm_s, totals.votes))
    else:
        replica.undo.take_back(at, replica.kept())


def check(options: Options, comm: Communicator) -> None:
    """Raise UsageError where a run cannot outlive ranks."""
    if options.elastic == "never":
        return
    if options.elastic == "grow":
        own_name.require_names({"--model": options.model or "", "--optimizer": options.optimizer})
    reason = comm.wire.why_not_elastic(options.elastic == "grow")
    if not reason and not comm.notices_ends:
        reason = "ranks cannot see another's end here (that wants Linux 5.3 and one PID namespace); HPCAI_NODE=0 leaves it to MPI"
    if reason:
        raise UsageError(f"--elastic {options.elastic}: {reason}")
