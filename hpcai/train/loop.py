"""The loop around the step: data, epochs, evaluation, checkpoints, reports."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.data import sharding, sources
from hpcai.data.dataset import Dataset, take
from hpcai.errors import NonFiniteError, RankFailed
from hpcai.parallel import schedules
from hpcai.parallel.pipeline import Micro
from hpcai.train import advice, elastic, report, resume, sampling, signals, trace
from hpcai.train.build import build_schedule, check
from hpcai.train.config import Options
from hpcai.train.replica import Replica, replica
from hpcai.train.run import Run, room
from hpcai.train.step import train_step
from hpcai.xp import Array

EVALUATION_BATCH = 1024


def fit(options: Options, comm: Communicator) -> dict[str, Any]:
    """Train as the options say, on all ranks of `comm`; returns the summary, on all ranks.

    Rank 0 writes into `options.run`: checkpoints/, metrics.jsonl, summary.json, and with `plot` loss.png.
    Raises: UsageError, DataError, CheckpointError, NonFiniteError, RanksLost, Leave, OSError.
    """
    folder = Path(options.run or "runs")
    elastic.check(options, comm)
    dataset = share(comm, lambda: _prepare(options, comm.size, folder))
    options = advice.decided(options, dataset, comm, folder)
    mine = replica(options, dataset, comm)
    progress = resume.start(options, mine, comm, folder)
    if mine.backup is not None:
        mine.backup.renew(mine.state)

    per_epoch = sharding.steps_per_epoch(dataset.train_samples, options.batch)
    total = min(options.steps or sys.maxsize, (options.epochs or sys.maxsize) * per_epoch)
    with contextlib.closing(report.Reporter(options, comm, dataset, mine, progress, total, per_epoch)) as reporter:
        comm.on_root(reporter.open)
        run = Run(options, dataset, comm, mine, progress, reporter, build_schedule(options, total), total, progress.step)
        with _naming_last_checkpoint(folder), signals.cast_into(mine.votes, options.signals, comm.rank == 0):
            _train(run)
        timelines = trace.gather(run.mine)
        text = sampling.sample(run.mine, options.context, options.sample, options.seed) if options.sample else b""
        return run.comm.on_root(lambda: reporter.finish(timelines, text))


def _train(run: Run) -> None:
    """All steps that are left, and what comes between them; ranks that fail meanwhile are done without where that can be."""
    while True:
        try:
            _between(run)
            if run.progress.step == run.total:
                return
            _step(run)
        except RankFailed as failure:
            if run.options.elastic == "never":
                raise
            elastic.recover(run, failure)


def _step(run: Run) -> None:
    """One step on this rank's samples of the next global batch."""
    options, dataset, mine, at = run.options, run.dataset, run.mine, run.progress.step
    dp = mine.mesh.dp
    batch = sharding.global_batch(dataset.train_samples, options.batch, options.seed, at)
    index = sharding.shard(batch, dp.rank, dp.size, mine.grain or 1)
    x, target = take(dataset, index, run.rows, phase=sharding.phase(dataset.context, options.seed, at // run.per_epoch))
    if options.elastic != "never":
        elastic.remember(mine, at)
    run.completed(train_step(mine, x, target, len(batch), at, run.schedule(at)))


def _between(run: Run) -> None:
    """What is due after the last step: an epoch's evaluation, a checkpoint, leaving. Does nothing when it is called again."""
    options, progress = run.options, run.progress
    epoch_ends, run_ends = progress.step % run.per_epoch == 0, progress.step == run.total
    if epoch_ends and progress.samples:
        run.reporter.epoch(progress.close_epoch(*evaluate(run.mine, run.dataset)))
    leave = None if run_ends else signals.check(run.counted, progress.step)
    due = options.checkpoint_steps and (epoch_ends or progress.step % options.checkpoint_steps == 0)
    if (run_ends or leave or due) and run.written < progress.step:
        resume.save(options, run.mine, progress, run.comm, run.folder)
        run.written = progress.step
    if run_ends and progress.samples:  # within an epoch: its record is not in the checkpoint, where the epoch is still open
        run.reporter.epoch(progress.close_epoch(*evaluate(run.mine, run.dataset)))
    if leave is not None:
        raise leave


def evaluate(mine: Replica, dataset: Dataset) -> tuple[float, float | None]:
    """Mean loss and accuracy (None for regression) on the test samples, which data-parallel ranks share out. Collective."""
    mesh, n = mine.mesh, dataset.test_samples
    most = max(1, EVALUATION_BATCH // dataset.targets_a_sample)
    index = sharding.shard(np.arange(n), mesh.dp.rank, mesh.dp.size)
    rounds = -(-max(mesh.dp.exchange(len(index))) // most)
    rows, sums = room(dataset, most, mine), np.zeros(2)
    # All micro-batches at once would keep all their inputs; as many as there are stages fill a pipeline.
    depth = 2 * mesh.pp.size if mesh.pp.size > 1 else 1
    for start in range(0, rounds, depth):
        micros = []
        for one in range(start, min(start + depth, rounds)):
            x, target = take(dataset, index[one * most : (one + 1) * most], rows, train=False)
            micros.append(Micro(x.copy() if depth > 1 else x, target, 0))
        plan = schedules.forwards(mesh.pp.size, len(micros), mine.chunks)
        sums += mine.evaluation.run(plan, micros, mine.weights, None, 0.0, None)
    sums *= mesh.tp.rank == 0
    mesh.world.allreduce(sums)
    sums /= n * dataset.targets_a_sample
    return float(sums[0]), float(sums[1]) if dataset.classes else None


def load(options: Options, comm: Communicator) -> Dataset:
    """The data set that the options name, on all ranks."""
    where = Path(options.data_dir) if options.data_dir else None
    return share(comm, lambda: sources.load(options.data, where, options.label, options.ignore, options.context))


def share(comm: Communicator, load: Callable[[], Dataset]) -> Dataset:
    """Load on rank 0 and broadcast, so that one process reads the files and one error reaches all."""
    loaded: list[Dataset] = []

    def describe() -> Dataset:
        loaded.append(load())
        empty: dict[str, Any] = {name: (array.shape, array.dtype) for name, array in _arrays(loaded[0]).items()}
        return loaded[0]._replace(**empty)

    described = comm.on_root(describe)
    arrays: dict[str, Array] = {}
    for name, (shape, dtype) in _arrays(described).items():
        array = np.require(_arrays(loaded[0])[name], requirements=["C", "W"]) if loaded else np.empty(shape, dtype)
        arrays[name] = comm.broadcast(array)
    return described._replace(**arrays)


def _arrays(dataset: Dataset) -> dict[str, Any]:
    return {name: getattr(dataset, name) for name in ("x_train", "y_train", "x_test", "y_test")}


def _prepare(options: Options, ranks: int, folder: Path) -> Dataset:
    """On rank 0, before anything is written: refuse what cannot work, load the data, see that the folder can be written."""
    check(options, ranks)
    if options.plot:
        report.require_matplotlib()
    where = Path(options.data_dir) if options.data_dir else None
    dataset = sources.load(options.data, where, options.label, options.ignore, options.context)
    for place in [folder, *([Path(options.trace).parent] if options.trace else [])]:
        place.mkdir(parents=True, exist_ok=True)
        probe = place / ".writable"
        probe.touch()
        probe.unlink()
    for warning in dataset.warnings:
        print(f"hpcai: warning: {warning}", file=sys.stderr)
    return dataset


@contextlib.contextmanager
def _naming_last_checkpoint(folder: Path) -> Iterator[None]:
    """Add to a NonFiniteError where the run can go on from."""
    try:
        yield
    except NonFiniteError as error:
        last = resume.newest(folder)
        good = f"the last good checkpoint is {last}" if last else "no checkpoint was written yet"
        raise NonFiniteError(f"{error}; {good}. Try a smaller --lr or --clip 1") from None
