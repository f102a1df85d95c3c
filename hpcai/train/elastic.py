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
from time import perf_counter
from typing import NamedTuple

import numpy as np

from hpcai.comm import mpi
from hpcai.comm.communicator import Communicator
from hpcai.errors import NonFiniteError, RankFailed, RanksLost, UsageError
from hpcai.parallel import zero
from hpcai.train import memories, precision, resume, step
from hpcai.train.config import Options
from hpcai.train.replica import Replica, replica
from hpcai.train.run import Run
from hpcai.train.step import Report, Totals
from hpcai.xp import Array


class Told(NamedTuple):
    """What a rank that lives tells the others: its rank until now, and the last step that it saw decided."""

    rank: int
    decided: tuple[int, Totals] | None


def recover(run: Run, failure: RankFailed) -> None:
    """Make `run` one of the ranks that live, at the same step on all. Called by each of them that met the failure.

    Raises: RanksLost, on all alike, where the only copies of a shard were on ranks that failed.
    """
    began, before = perf_counter(), run.comm.size
    wire = run.comm.wire
    adopted = None
    while adopted is None:
        wire.revoke()
        wire = wire.shrink()
        try:
            comm = Communicator(wire)
            adopted = _rebuilt(run, comm)
        except RankFailed:  # another one, meanwhile
            wire.revoke()
        except (RanksLost, NonFiniteError):
            mpi.adopt(comm)
            raise
        if not wire.all_fine(adopted is not None):
            adopted = None
    run.comm, run.mine, run.progress = adopted
    mpi.adopt(run.comm)
    run.resized()
    seconds = perf_counter() - began
    run.recoveries.append({"step": run.progress.step, "ranks": [before, run.comm.size], "seconds": seconds})
    run.reporter.moved(run.comm, run.mine, run.progress)
    run.reporter.say(
        f"{failure}: {before - run.comm.size} of {before} ranks failed; going on with {run.comm.size} after step "
        f"{run.progress.step:,}, {1e3 * seconds:.0f} ms later"
    )


def _rebuilt(run: Run, comm: Communicator) -> tuple[Communicator, Replica, resume.Progress]:
    """The ranks' parts for another number of them, at the same step. Collective. `run` stays usable for another attempt."""
    told = comm.exchange(Told(run.comm.rank, run.mine.decided))
    _require_shards(run, [one.rank for one in told])
    _level(run, told)
    histories = comm.exchange(dataclasses.asdict(run.progress))
    progress = resume.Progress(**max(histories, key=lambda one: len(one["history"])))
    fresh = replica(dataclasses.replace(run.options, mesh=""), run.dataset, comm)
    _carry_over(run.mine, fresh, {one.rank for one in told})
    return comm, fresh, progress


def _require_shards(run: Run, alive: list[int]) -> None:
    if not run.mine.zero:
        return
    size = run.comm.size
    copies = [{rank, (rank + 1) % size} if run.mine.backup is not None else {rank} for rank in range(size)]
    lost = [rank for rank in range(size) if not copies[rank] & set(alive)]
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
    comm.allreduce(whole.view(np.int32 if whole.itemsize == 4 else np.int64))
    return whole


def remember(mine: Replica, at: int) -> None:
    """Keep what step `at` changes before it is decided, so that the step can be repeated: what reducers remember."""
    if mine.reducers or mine.grain:
        mine.remembered = at, memories.copied(mine.reducer_states, mine.remembered[1] if mine.remembered else None)


def check(options: Options, comm: Communicator) -> None:
    """Raise UsageError where a run cannot outlive ranks."""
    if options.elastic != "never" and (reason := comm.wire.why_not_elastic()):
        raise UsageError(f"--elastic {options.elastic}: {reason}")
