"""The outputs of a run for users and programs: progress, the final table, metrics, summary and plot."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import platform
import statistics
from collections import deque
from collections.abc import Sequence
from math import isfinite, log
from pathlib import Path
from time import perf_counter, time
from typing import Any, Literal

import numpy as np

import hpcai
from hpcai.comm.call import some
from hpcai.comm.communicator import Communicator
from hpcai.data.dataset import Dataset, constant_score
from hpcai.errors import counted
from hpcai.monitor import Event, Sink
from hpcai.parallel.schedules import Work
from hpcai.strategies.compressed import Compressed
from hpcai.strategies.sharded import memory_bytes
from hpcai.strategies.strategy import part
from hpcai.train import outputs, resume, strict
from hpcai.train.history import Progress
from hpcai.train.lock import Locks
from hpcai.train.options import remarks
from hpcai.train.options.options import Options
from hpcai.train.outcome import Report
from hpcai.train.replica import Replica
from hpcai.train.report import curve, figures, trace
from hpcai.train.report import summary as summaries
from hpcai.train.report.metrics import KEPT_STEPS, Metrics
from hpcai.train.report.progress_line import ProgressLine
from hpcai.train.report.stragglers import Waiting
from hpcai.train.state.arrays import whole_layout


class Reporter:
    """All reports of one run. Every rank makes the same calls; only rank 0 prints and writes."""

    def __init__(
        self,
        options: Options,
        comm: Communicator,
        dataset: Dataset,
        replica: Replica,
        progress: Progress,
        total: int,
        per_epoch: int,
        locks: Locks | None = None,
        sinks: Sequence[Sink] = (),
    ):
        self.options, self.comm, self.dataset, self.replica, self.progress = options, comm, dataset, replica, progress
        self.total, self.per_epoch, self.silent = total, per_epoch, comm.rank != 0
        self.folder, self.locks, self.sinks, self.heard = Path(options.run_dir or "runs"), locks, sinks, list[Sink]()
        self.metrics_path = outputs.metrics_path(options)
        self.first = progress.step
        self.started = self.epoch_started = perf_counter()
        self.reports: list[Report] = []
        self.last: deque[tuple[int, float, Report]] = deque(maxlen=KEPT_STEPS)
        self.metrics: Metrics | None = None
        self.recoveries: list[dict[str, Any]] = []
        self.waiting = Waiting(comm)

    def open(self) -> None:
        """Open the metrics file; print where the run begins and remarks on its options. Raises: OSError."""
        self._begin(resume.changed(self.options, self.progress.step)).open()
        axes = self.replica.mesh.sizes
        for words in remarks.beforehand(
            self.options, axes, self.dataset.train_samples, self.per_epoch, self.total, self.dataset.validates
        ):
            self.line.lasting(f"hpcai: {words}")

    def _begin(self, changed: str = "") -> Metrics:
        owed = [self._record(*one) for one in self.last]
        self.metrics = Metrics(self.metrics_path, after_step=self.progress.step, owed=owed)
        self.line = ProgressLine(self.total, self.per_epoch, self.progress.step, self.dataset.unit)
        if self.progress.step:
            self.line.lasting(f"continuing after step {self.progress.step:,} of {self.total:,}{changed}")
        about = {"step": self.progress.step, "options": dataclasses.asdict(self.options)}
        for sink in self.sinks:
            sink.open(copy.deepcopy(about))
            self.heard.append(sink)
        return self.metrics

    def _tell(self, kind: Literal["step", "epoch", "recovery", "end"], values: dict[str, Any]) -> None:
        for sink in self.heard:
            sink.event(Event(kind, self.progress.step, copy.deepcopy(values)))  # a sink may change its copy

    @property
    def token(self) -> str:
        """The token of the run's locks, for ranks that join it."""
        return "" if self.locks is None else self.locks.token

    def moved(self, comm: Communicator, replica: Replica, progress: Progress) -> None:
        """Continue among other ranks. A new rank 0 takes over lock, files and messages, and writes metrics that are missing.
        Afterwards the file has all steps so far, so that ranks that join need no earlier steps.
        """
        self.comm, self.replica, self.progress, self.waiting = comm, replica, progress, Waiting(comm)
        if self.silent and comm.rank == 0:
            self.silent = False
            if self.locks is not None:
                self.locks.take_over()
            self.reports += [report for _, _, report in self.last]
            self._begin()
        self.flush()  # opens the file, or warns

    def flush(self) -> None:
        """Flush the metrics before a checkpoint, so that the file has all steps of the checkpoint."""
        if self.metrics is not None:
            self.metrics.flush()

    def note_recovery(self, lost: list[int], before: int, seconds: float) -> None:
        """Record a recovery for the summary, also on ranks that joined in it: any rank may later write the summary."""
        at = {"step": self.progress.step, "lost": lost, "of": before, "ranks": self.comm.size}
        self.recoveries.append(at | {"seconds": seconds, "at": time()})
        self._tell("recovery", self.recoveries[-1])

    def recovered(self, lost: list[int], before: int, seconds: float, spares: int) -> None:
        """Report a recovery: lost ranks, of how many, seconds until the others continued, and remaining spare ranks."""
        now, step = self.comm.size, self.progress.step
        self.note_recovery(lost, before, seconds)
        left = f"; {spares} spare left" if self.options.spare_ranks else ""
        failed = f"{some(lost)} of {before} failed" if lost else "some ranks stalled, but none failed"
        self.say(f"{failed}; {now} {'goes' if now == 1 else 'go'} on after step {step:,}, {1e3 * seconds:.0f} ms later{left}")

    def say(self, text: str) -> None:
        """Print a lasting line on stderr, on rank 0."""
        if not self.silent:
            self.line.lasting(text)

    def step(self, number: int, lr: float, done: Report) -> None:
        """Report step `number`, counted from 1."""
        if self.silent:
            self.last.append((number, lr, done))
            return
        self.reports.append(done)
        assert self.metrics is not None
        record = self._record(number, lr, done)
        self.metrics.write(record)
        self._tell("step", record)
        self.line.show(number, done.loss_sum / done.targets, lambda: self._samples_per_s(last=50))

    def _record(self, number: int, lr: float, done: Report) -> dict[str, Any]:
        """Return a step as a line of the metrics."""
        return {
            "step": number,
            "epoch": (number - 1) // self.per_epoch + 1,
            "loss": done.loss_sum / done.targets,
            "lr": lr,
            "grad_norm": done.grad_norm if isfinite(done.grad_norm) else None,  # a step that f16 skipped
            "samples_per_s": done.targets / done.step_s,
            "step_ms": 1e3 * done.step_s,
            "comm_ms": 1e3 * done.comm_s,
        }

    def epoch(self, record: dict[str, Any]) -> None:
        """Report an epoch by its record (see Progress)."""
        if self.silent:
            return
        accuracy, number = record["test_accuracy"], len(self.progress.history)
        score = f"test loss {record['test_loss']:.4f}" + ("" if accuracy is None else f"   test accuracy {accuracy:.4f}")
        if "validation_loss" in record:
            score += f"   validation loss {record['validation_loss']:.4f}"
            right = record["validation_accuracy"]
            score += "" if right is None else f" accuracy {right:.4f}"
        score += f"   {said}" if (said := figures.words(record, self.dataset.target_name)) else ""
        seconds = perf_counter() - self.epoch_started
        self.line.lasting(f"epoch {number:>3}/{self.line.epochs}   loss {record['loss']:.4f}   {score}   {seconds:.1f} s")
        self.epoch_started = perf_counter()
        self._tell("epoch", record | {"epoch": number})

    def finish(self, timelines: list[list[Work]], text: bytes, found: dict[str, Any]) -> dict[str, Any]:
        """Write the summary, plot and trace, print the tables and the sampled text, and return the summary. On rank 0.

        timelines: of the last step, by rank. found: the summary's entries about classes, outputs and the best epoch.
        """
        self._close_metrics()
        path = self.folder / "summary.json"
        earlier = summaries.read(path) if not self.reports and self.progress.step == self.first else {}
        if earlier.get("steps", -1) >= self.progress.step:
            more = "a greater --patience, or none," if "stopped_early" in found else "more --epochs or --steps"
            self.line.lasting(f"nothing was left to do; give {more} to continue")
            say(text)
            return earlier
        summary = json.loads(strict.dumps(self._summary(timelines) | found))
        summaries.write(path, summary)
        self._tell("end", summary)
        written = [path, self.metrics_path, self.folder / "checkpoints"]
        if self.options.plot:
            title = f"{self.dataset.name}, {self.replica.model.name}, {counted(self.comm.size, 'rank')}"
            unit, target = curve.unit(self.replica.whole.loss.name, self.dataset), self.dataset.target_name
            curve.plot(self.metrics_path, self.progress.history, self.folder / "loss.png", title, unit, target)
            written.append(self.folder / "loss.png")
        if self.options.trace_file:
            written += self._trace(Path(self.options.trace_file), timelines)
        print(summaries.table(summary, written, self.dataset.target_name), flush=True)
        if by_class := figures.table(summary, self.dataset.classes):
            print(f"\n{by_class}", flush=True)
        say(text)
        return summary

    def _trace(self, path: Path, timelines: list[list[Work]]) -> list[Path]:
        """Write the last step's timeline, and with --plot a picture of it; return the paths."""
        if not any(timelines):
            self.line.lasting("no step was made, so there is no trace")
            return []
        trace.write(path, timelines, self.replica)
        if not self.options.plot:
            return [path]
        trace.picture(
            path.with_suffix(".png"), timelines, f"{self.replica.model.name}, {self.options.pipeline_schedule}, one step"
        )
        return [path, path.with_suffix(".png")]

    def close(self) -> None:
        """Flush and close the metrics file, and close all sinks, also if the run fails."""
        self._close_metrics()
        if self.metrics is not None:
            self.line.close()
        with contextlib.ExitStack() as closing:  # close all sinks, even if one fails
            while self.heard:
                closing.callback(self.heard.pop().close)

    def _close_metrics(self) -> None:
        if self.metrics is not None:
            self.metrics.close()

    def _summary(self, timelines: list[list[Work]]) -> dict[str, Any]:
        last = self.progress.history[-1]
        summary = {
            "ranks": self.comm.size,
            "seed": self.options.seed,
            "versions": {"hpcai": hpcai.__version__, "python": platform.python_version(), "numpy": np.__version__},
            "mpi": self.comm.wire.describe(),
            "mesh": self.replica.mesh.sizes._asdict(),
            "memory": memory_bytes(self.replica.buffers),
            "steps": self.progress.step,
            "parameters": sum(slot.stop - slot.start for slot in whole_layout(self.replica.whole).slots),
            "epoch_losses": [record["loss"] for record in self.progress.history],
            "epoch_test_accuracies": [record["test_accuracy"] for record in self.progress.history],
            "test_loss": last["test_loss"],
            "test_accuracy": last["test_accuracy"],
            "constant_score": constant_score(self.dataset),
            "samples_per_s": self._samples_per_s(),
            "step_ms": 1e3 * self._median("step_s"),
            "comm_ms": 1e3 * self._median("comm_s"),
            "wall_s": perf_counter() - self.started,
            "options": dataclasses.asdict(self.options),
        }
        if self.dataset.encoding is not None:
            summary["encoding"] = self.dataset.encoding
        if self.waiting.summary is not None:
            summary["waiting"] = self.waiting.summary
        if self.dataset.context:
            summary["bits_per_byte"] = last["test_loss"] / log(2)
        if self.replica.mesh.pp.size > 1 and timelines[0]:
            summary["bubble"], summary["bubble_in_theory"] = trace.bubbles(self.options, self.replica, timelines)
        if self.recoveries:
            summary["recoveries"] = self.recoveries
        if part(self.replica.state, Compressed) is not None:
            summary["compression"] = summaries.compression(self.replica, self.comm)
        return summary | {key: last[key] for key in ("weight_norm", "test_mae", "test_rmse", "test_r2") if key in last}

    def _samples_per_s(self, last: int | None = None) -> float:
        """Return the speed over the last steps, without the very first step, which compiles or loads kernels."""
        counted = (self.reports[1:] or self.reports)[-(last or 0) :]
        return sum(r.targets for r in counted) / sum(r.step_s for r in counted) if counted else 0.0

    def _median(self, name: str) -> float:
        return statistics.median([getattr(r, name) for r in self.reports]) if self.reports else 0.0


def say(text: bytes) -> None:
    """Print a sample of text, below the table."""
    if text:
        print(f"\n{text.decode('utf-8', 'replace')}", flush=True)
