"""Recovery when ranks fail. The run continues from memory, with fewer ranks or with replacements, and repeats at most one step.

A step is *decided* when its last sum over ranks is done. A sum is done only after all ranks have taken part. So a rank that has
seen the step decided knows that every rank has its sums of gradients. After a failure the living ranks find out in one exchange
which of two cases holds. Either some rank has seen the step decided: then all finish the step, each with its own sums of
gradients. Or no rank has: then no parameter was changed, and all repeat the step.

A lost shard of ZeRO is restored from the right neighbour's copy (parallel/redundancy.py). The compression residual of a lost rank
is lost. Sources: ULFM, the fault-tolerance chapter of the MPI Forum (revoke, shrink, agree; Bland et al., IJHPCA 27(3), 2013,
doi:10.1177/1094342013488238).
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
    """Continue `run` on the living ranks, at the same step on all. Each rank that met a failure calls this function.

    Spare ranks take the places of failed ranks; with --elastic grow, new ranks are started for the places that remain.

    Raises, on all ranks alike: RanksLost if the only copies of a shard were on failed ranks; StallError if the same step has
    stalled twice although no rank failed.
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
        raise StallError(f"ranks stalled twice after step {at:,} although none has failed; see --stall-timeout")
    run.repeated = at


def finish_recovery(run: Run, names: list[int]) -> None:
    """Complete a recovery, on surviving and joining ranks, once the surviving ranks have found each other. Start new ranks if
    some are still missing, and rebuild all that depends on the ranks. Collective. names: the former numbers of the ranks.
    """
    while not _complete(run):
        _find_others(run, names)
    job.adopt(run.comm)
    stall.watch_over(run.comm)
    run.saver, run.written = run.saver.moved(run.replica, run.comm), 0  # all write a checkpoint due now, unless it exists
    run.resized()
    run.reporter.moved(run.comm, run.replica, run.progress)


def _complete(run: Run) -> bool:
    """Start missing ranks. Return False, on all ranks, if another rank failed meanwhile."""
    if run.options.elastic != "grow" or run.comm.size >= run.reserve.wanted:
        return True
    with limits.limited("the start of new ranks", RanksLost.exit_code, job.JOINING_S):
        return newcomers.spawn_ranks(run)


def _find_others(run: Run, names: list[int]) -> None:
    """Continue on the living ranks, with spare ranks in the places of failed ones. Move the names of failed ranks to run.lost."""
    with limits.limited("the recovery from a failure", RanksLost.exit_code):
        while True:
            failed = _shrink(run)
            run.lost += [name for rank, name in enumerate(names) if rank in failed]
            names[:] = [name for rank, name in enumerate(names) if rank not in failed]
            if newcomers.use_spares(run):
                return


def _shrink(run: Run) -> list[int]:
    """Continue on the living ranks; return the failed ones."""
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
            reserve.spares = 0  # spare ranks are told nothing, and end when no training rank is left
            raise

    while made is None:
        reserve.shrink()
        made = voted(reserve.world, among_those_that_live, reserve.given_up)  # None: another rank failed meanwhile
    part, reports = made[0]
    failed = sorted(set(range(run.comm.size)) - {one.rank for one in reports})
    run.switch_to(part)
    run.reporter.moved(run.comm, run.replica, run.progress)
    return failed


def _rebuilt(run: Run, comm: Communicator, reports: list[SurvivorReport]) -> Part:
    """Return this rank's part among fewer ranks, at the same step. Collective. `run` stays usable for another attempt."""
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
            f"rank {lost[0]}'s share of the optimizer state is lost: all ranks with a copy have failed; start again with "
            "--resume auto to continue from the last checkpoint"
        )


def _level(run: Run, reports: list[SurvivorReport]) -> None:
    """Bring this rank to the step of the others: finish a decided step, or undo the changes of an undecided one."""
    replica, at = run.replica, run.progress.step
    decided = max((one.decided for one in reports if one.decided is not None), key=lambda one: one[0], default=None)
    if decided is not None and decided[0] == at:
        totals = decided[1]
        if not math.isfinite(totals.grad_norm) and not skips_overflow(replica.state):  # update would ask all ranks
            raise NonFiniteError(f"the gradient became infinite in step {at + 1}")
        if replica.decided is None or replica.decided[0] != at:
            replica.decided, replica.updated = decided, False
        if not replica.updated:
            step.update(replica, totals, at, run.schedule(at))
        run.completed(Report(totals.loss_sum, totals.targets, totals.grad_norm, totals.comm_s, totals.comm_s, totals.votes))
    else:
        replica.undo.take_back(at, replica.kept())


def check(options: Options, comm: Communicator) -> None:
    """Raise UsageError if --elastic is given and the run could not survive the failure of ranks."""
    if options.elastic == "never":
        return
    if options.elastic == "grow":
        own_name.require_names({"--model": options.model or "", "--optimizer": options.optimizer})
    reason = comm.wire.why_not_elastic(options.elastic == "grow")
    if not reason and not comm.notices_ends:
        reason = "ranks cannot see here that another ends (needs Linux 5.3 and one PID namespace); HPCAI_NODE=0 leaves it to MPI"
    if reason:
        raise UsageError(f"--elastic {options.elastic}: {reason}")
