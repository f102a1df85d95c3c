"""The work between two steps: an epoch's evaluation, a checkpoint, the end of the run, leaving on request."""

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
    """Do what is due after the last step: evaluate an epoch, write a checkpoint, leave. A second call does nothing."""
    options, progress = run.options, run.progress
    run.saver.heard(run.counted)
    epoch_ends, record = progress.step % run.per_epoch == 0, None
    if epoch_ends and progress.samples:
        _require_alike(run)
        whole = _record(run)
        best.judge(progress, whole, options)
        _close_epoch(run, whole)
    run_ends = progress.step == run.total or best.waits_in_vain(progress, options)
    if run_ends and progress.samples:  # within an epoch: its record is not in the checkpoint, where the epoch is still open
        record = _record(run)
    leave = None if run_ends else signals.check(run.counted, progress.step)
    due = options.checkpoint_steps and (epoch_ends or progress.step % options.checkpoint_steps == 0)
    if (run_ends or leave or due or best.is_here(progress, options)) and run.written < progress.step:
        run.reporter.flush()
        resume.save(options, run.replica, progress, run.saver)
        run.written = progress.step
    if run_ends:
        run.saver.close()
    if leave and run.saver.finish():  # said already; older checkpoints are there
        leave = signals.check(run.counted, progress.step, written=False)
    if record is not None:
        best.judge(progress, record, options, whole=False)  # nor is that in the checkpoint
        _close_epoch(run, record)
    if leave is not None:
        raise leave


def _record(run: Run) -> dict[str, Any]:
    """Evaluate; returns this epoch's record. Collective."""
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
    """Raise RankMismatch, on all ranks, where the whole parameters of replicas have come apart. Collective."""
    mesh = run.replica.mesh
    if mesh.dp.size == 1 or run.options.zero:  # a shard is updated by one rank
        return
    place = mesh.tp.rank, mesh.pp.rank
    known = mesh.world.allgather_object((place, shards.checksum(run.replica.params.view("u1").data)))
    for rank, (part_of, digest) in enumerate(known):
        first = next(i for i, (one, _) in enumerate(known) if one == part_of)
        if digest != known[first][1]:
            raise RankMismatch(
                f"after step {run.progress.step:,} rank {rank} has other parameters than rank {first}; gradients and optimizers "
                "of one's own must be the same functions on all ranks, and change nothing but what they are asked for"
            )


def _close_epoch(run: Run, record: dict[str, Any]) -> None:
    run.progress.close_epoch(record)
    run.reporter.epoch(record)
