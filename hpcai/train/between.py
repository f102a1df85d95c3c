"""The work between two steps: the evaluation of an epoch, a checkpoint, the end of the run, and leaving after a signal."""

from __future__ import annotations

from typing import Any

from hpcai.checkpoint import shards
from hpcai.errors import RankMismatch
from hpcai.strategies.sharded import Sharded, weight_norm
from hpcai.strategies.strategy import part
from hpcai.train import best, resume, signals
from hpcai.train.evaluation import evaluate
from hpcai.train.run import Run


def between(run: Run) -> None:
    """Do the work that is due after a step: evaluate an epoch, write a checkpoint, leave. A second call does nothing.

    Collective. Raises: Leave if a signal asked for it; RankMismatch if replicas differ.
    """
    options, progress = run.options, run.progress
    run.saver.heard(run.counted)
    epoch_ends, record = progress.step % run.per_epoch == 0, None
    if epoch_ends and progress.samples:
        _require_alike(run)
        whole = _record(run)
        best.judge(progress, whole, options)
        _close_epoch(run, whole)
    run_ends = progress.step == run.total or best.waits_in_vain(progress, options)
    if run_ends and progress.samples:  # the run ends within an epoch: in the checkpoint that epoch is still open
        record = _record(run)
    leave = None if run_ends else signals.check(run.counted, progress.step)
    due = options.checkpoint_steps and (epoch_ends or progress.step % options.checkpoint_steps == 0)
    if (run_ends or leave or due or best.is_here(progress, options)) and run.written < progress.step:
        run.reporter.flush()
        resume.save(options, run.replica, progress, run.saver)
        run.written = progress.step
    if run_ends:
        run.saver.close()
    if leave and run.saver.finish():  # the failed write was reported already; older checkpoints remain
        leave = signals.check(run.counted, progress.step, written=False)
    if record is not None:
        best.judge(progress, record, options, whole=False)  # the checkpoint does not contain this either
        _close_epoch(run, record)
    if leave is not None:
        raise leave


def _record(run: Run) -> dict[str, Any]:
    """Evaluate the model and return this epoch's record. Collective."""
    run.evaluated = found = evaluate(run.replica, run.dataset)
    figures = {"test_loss": found.loss, "test_accuracy": found.accuracy, **found.quantities}
    if run.dataset.validates:
        held = evaluate(run.replica, run.dataset.validating)
        figures |= {"validation_loss": held.loss, "validation_accuracy": held.accuracy}
    base = part(run.replica.state, Sharded)
    assert base is not None
    figures["weight_norm"] = weight_norm(base)
    return run.progress.record(figures)


def _require_alike(run: Run) -> None:
    """Raise RankMismatch, on all ranks, if replicas that hold the same parameters differ. Collective."""
    mesh = run.replica.mesh
    if mesh.dp.size == 1 or run.options.zero:  # with ZeRO one rank alone updates a shard
        return
    place = mesh.tp.rank, mesh.pp.rank
    known = mesh.world.allgather_object((place, shards.checksum(run.replica.params.view("u1").data)))
    for rank, (part_of, digest) in enumerate(known):
        first = next(i for i, (one, _) in enumerate(known) if one == part_of)
        if digest != known[first][1]:
            raise RankMismatch(
                f"after step {run.progress.step:,} the parameters of rank {rank} differ from those of rank {first}; your own "
                "gradients and optimizers must be the same functions on all ranks, and change only their own output arrays"
            )


def _close_epoch(run: Run, record: dict[str, Any]) -> None:
    run.progress.close_epoch(record)
    run.reporter.epoch(record)
