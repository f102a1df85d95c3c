"""The loop around the step: data, epochs, evaluation, checkpoints, reports."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import time
from typing import Any, NamedTuple

from hpcai.checkpoint import format, naming
from hpcai.comm import job
from hpcai.comm.communicator import Communicator
from hpcai.comm.diagnosis import stall
from hpcai.comm.membership import Membership, training_ranks
from hpcai.data import sharding
from hpcai.data.dataset import Dataset
from hpcai.errors import HpcaiError, NonFiniteError, RankFailed, RankMismatch, RanksLost, StallError
from hpcai.monitor import Sink
from hpcai.train import advice, best, class_weights, fits, inputs, outputs, resume, sampling, signals
from hpcai.train.between import between
from hpcai.train.build import build_schedule
from hpcai.train.elastic import newcomers, recover, spares
from hpcai.train.evaluation import evaluate
from hpcai.train.history import Progress
from hpcai.train.lock import Locks
from hpcai.train.options import own_name
from hpcai.train.options.options import Options
from hpcai.train.replica import Replica, new_replica
from hpcai.train.report import trace
from hpcai.train.report.figures import MOST_LISTED, by_class
from hpcai.train.report.reporter import Reporter
from hpcai.train.run import Run, batch_of
from hpcai.train.saving import Saver, on_root_beside
from hpcai.train.step import train_step


class Ended(NamedTuple):
    """The results of a run that has ended, on one rank.

    checkpoint: the path of the last checkpoint; digest: of its manifest; comm: of the ranks that continue with their program.
    """

    summary: dict[str, Any]
    history: list[dict[str, Any]]
    checkpoint: str
    digest: str
    dataset: Dataset
    options: Options
    comm: Communicator


def fit(options: Options, comm: Communicator) -> dict[str, Any]:
    """Train with `run_to_end`, and return only the summary. Collective."""
    return run_to_end(options, comm).summary


def run_to_end(options: Options, comm: Communicator, sinks: Sequence[Sink] = (), in_script: bool = False) -> Ended:
    """Train as the options say, on all ranks of `comm`. Collective. in_script: the caller is a program that continues afterwards.

    Rank 0 writes into `options.run_dir`: checkpoints/, metrics.jsonl, summary.json, and with `plot` loss.png. Sinks receive
    the run's events on rank 0.
    Raises: UsageError, DataError, FolderTaken, CheckpointError, NonFiniteError, RanksLost, Leave, OSError.
    """
    if options.stall_timeout is not None:
        comm.set_timeout(options.stall_timeout)
    recover.check(options, comm)
    stall.outlive(False)  # undo the setting of an earlier run in this process
    reserve = Membership(comm.wire, training_ranks(comm.size, options.spare_ranks), options.spare_ranks, options.spare_ranks)
    training = comm.split(0 if comm.rank < reserve.wanted else None) if options.spare_ranks else comm
    if training is None:
        return go_on(*spares.stand_by(options, reserve), sinks)
    if options.spare_ranks:
        job.adopt(training)
    locks = Locks(resume.folders(options))
    with contextlib.closing(reserve), contextlib.closing(locks):
        return _begin(options, training, reserve, locks, sinks, in_script)


def _begin(
    options: Options, comm: Communicator, reserve: Membership, locks: Locks, sinks: Sequence[Sink], in_script: bool
) -> Ended:
    folder = Path(options.run_dir or "runs")
    dataset = inputs.share(comm, lambda: inputs.prepare(options, comm.size), lambda: inputs.load_alone(options))
    dataset = class_weights.decided(options, dataset, comm)
    if options.elastic == "grow" and dataset.samples is not None:
        own_name.require_names({"--data": options.data})
    _hold(locks, comm)
    comm.on_root(lambda: outputs.require_writable(options))
    place = resume.prepare(options, comm)
    fits.require(options, dataset, comm)
    options = advice.decided(options, dataset, comm)
    replica = new_replica(options, dataset, comm, resume.cut(options, comm))
    progress = resume.start(options, replica, comm, folder)

    run = _run(options, dataset, progress, Saver(replica, comm, place, options.keep_checkpoints), reserve, locks, sinks)
    run.in_script = in_script
    with contextlib.closing(run.reporter):
        comm.on_root(run.reporter.open)
        if progress.step < run.total:
            on_root_beside(comm, lambda: resume.leave_branch(place, progress.step))
        return _through(run)


def _hold(locks: Locks, comm: Communicator) -> None:
    """Let rank 0 lock the run's folders. Collective. Raises: FolderTaken, UsageError, OSError, on all ranks."""

    def taken() -> Exception | None:
        try:
            locks.take()
        except (HpcaiError, OSError) as error:
            return error
        return None

    error, locks.token = on_root_beside(comm, lambda: (taken(), locks.token), "the run's folders are still not locked")
    if error is not None:
        raise error


def go_on(
    reserve: Membership,
    comm: Communicator,
    told: newcomers.Invitation,
    dataset: Dataset,
    replica: Replica,
    sinks: Sequence[Sink] = (),
    came_later: bool = False,
) -> Ended:
    """Continue like `run_to_end` on a rank that has joined a run under way (newcomers.join). Collective.

    came_later: whether this rank was started as a replacement; else it was a spare rank.
    """
    if told.options.stall_timeout is not None:
        comm.set_timeout(told.options.stall_timeout)
    saver = Saver(replica, comm, resume.place(told.options), told.options.keep_checkpoints)
    locks = Locks(resume.folders(told.options), told.token)
    run = _run(told.options, dataset, told.progress, saver, reserve, locks, sinks)
    run.counted, run.lost, run.failed, run.came_later = told.counted, told.lost, told.failed, came_later
    run.in_script = told.in_script
    run.reporter.recoveries += told.recoveries
    recover.finish_recovery(run, [])
    run.reporter.note_recovery(run.lost, reserve.wanted, time() - run.failed)
    with contextlib.closing(reserve), contextlib.closing(locks):
        return _through(run)


def _run(
    options: Options,
    dataset: Dataset,
    progress: Progress,
    saver: Saver,
    reserve: Membership,
    locks: Locks,
    sinks: Sequence[Sink],
) -> Run:
    replica, comm = saver.replica, saver.comm
    per_epoch = sharding.steps_per_epoch(dataset.train_samples, options.batch)
    total = min(options.steps or sys.maxsize, (options.epochs or sys.maxsize) * per_epoch)
    reporter = Reporter(options, comm, dataset, replica, progress, total, per_epoch, locks, sinks)
    return Run(
        options, dataset, reserve, comm, replica, progress, reporter, build_schedule(options, total), total, saver, progress.step
    )


def _through(run: Run) -> Ended:
    """Continue the run to its end. With --elastic it continues after ranks fail, if it can."""
    if run.options.elastic != "never":
        stall.outlive()
    watched = signals.cast_into(run.replica.votes, run.options.signals, run.comm.rank == 0)
    with contextlib.closing(run.reporter), _naming_last_checkpoint(run), watched:
        while True:
            try:
                return _to_the_end(run)
            except RankFailed as error:
                if run.options.elastic == "never":
                    raise
                run.reserve.given_up.append(error)
                _recover(run)


def _recover(run: Run) -> None:
    """Continue on the ranks that are left. If that is impossible, all of them raise the same error, and a script may continue."""
    try:
        recover.recover(run)
    except (RanksLost, NonFiniteError):
        with contextlib.suppress(RankFailed):
            _part(run, job.init())
        raise


def _to_the_end(run: Run) -> Ended:
    """Train, and write the results. Here ranks that were started later part from the others, which continue with their program.
    They part after success and after an error that all ranks have. Raises: HpcaiError.
    """
    try:
        _train(run)
        ended = _finish(run)
    except (RankFailed, RankMismatch, StallError):
        raise
    except HpcaiError as error:
        try:
            _part(run, run.comm)
        except RankMismatch:  # not all ranks have this error
            raise error from None
        raise
    comm = _part(run, run.comm)
    if run.in_script and run.came_later and comm is not None:
        raise RanksLost(
            "the training is done, but all ranks that ran the script have failed, so the code after fit was not run; "
            'start the script again with resume="auto"'
        )
    return ended if comm is None else ended._replace(comm=comm)


def _part(run: Run, comm: Communicator) -> Communicator | None:
    """Return a communicator of the ranks that continue with their program; None on a rank that does not."""
    return comm if run.options.elastic != "grow" else job.part(comm, run.came_later)


def _train(run: Run) -> None:
    """Make all remaining steps, with the work between them."""
    between(run)
    while run.progress.step < run.total and not best.waits_in_vain(run.progress, run.options):
        _step(run)
        run.reserve.given_up.clear()
        between(run)


def _finish(run: Run) -> Ended:
    """Write and print the results of the whole run. Collective."""
    options = run.options
    run.reporter.waiting.settle()
    timelines = trace.gather(run.replica)
    text = sampling.sample(run.replica, options.context, options.sample_bytes, options.seed) if options.sample_bytes else b""
    figures = _figures(run) | _best(run)
    last = run.saver.place.path(naming.name_of(run.progress.step))
    summary, digest = run.comm.on_root(lambda: (run.reporter.finish(timelines, text, figures), format.digest(last)))
    return Ended(summary, run.progress.history, last, digest, run.dataset, run.options, run.comm)


def _figures(run: Run) -> dict[str, Any]:
    """Return the last evaluation's figures of single classes or outputs, for the summary. Collective."""
    if run.evaluated is None and not run.dataset.context:  # no step was left, or the ranks have changed since
        run.evaluated = evaluate(run.replica, run.dataset)
    if (found := run.evaluated) is None:
        return {}
    of_outputs = {"outputs": found.outputs[:MOST_LISTED]} if len(found.outputs) > 1 else {}
    return by_class(found.counts, run.dataset.class_names, run.comm) | of_outputs


def _best(run: Run) -> dict[str, Any]:
    """Return the summary's entries about the best epoch and an early end. Collective."""
    progress, options = run.progress, run.options
    found: dict[str, Any] = {}
    if progress.best is not None and best.metric(options, run.dataset.validates):
        found["best"] = dict(progress.best)
        if options.keep_best is not None:
            step = progress.best["step"]
            found["best"]["checkpoint"] = run.comm.on_root(lambda: best.checkpoint(run.saver.retention, step))
    if best.waits_in_vain(progress, options):
        found["stopped_early"] = best.stopped(progress)
    return found


def _step(run: Run) -> None:
    """Make one step on this rank's samples of the next global batch."""
    options, replica, at = run.options, run.replica, run.progress.step
    x, target, samples = batch_of(run.dataset, options, replica, at, run.rows)
    if options.elastic != "never":
        replica.undo.remember(at, replica.kept())
    with run.reporter.waiting.counted():
        outcome = train_step(replica, x, target, samples, at, run.schedule(at))
    run.completed(outcome)


@contextlib.contextmanager
def _naming_last_checkpoint(run: Run) -> Iterator[None]:
    """Add the last good checkpoint and advice to a NonFiniteError, which all ranks raise alike."""
    try:
        yield
    except NonFiniteError as error:
        with contextlib.suppress(RankFailed):
            run.saver.finish()
        place = run.saver.place
        last = place.names()
        good = f"the last good checkpoint is {place.path(last[-1])}" if last else "no checkpoint was written yet"
        short = "fp16" in (run.options.compress, *(choice for _, choice in run.options.compress_layers))
        range_ = "--compress bf16, since fp16 ends at 65504, or " if short else ""
        raise NonFiniteError(f"{error}; {good}. Try {range_}a smaller --lr or --clip-norm 1") from None
