"""The state of one rank's training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.comm.membership import Membership
from hpcai.data import sharding
from hpcai.data.dataset import Dataset, take
from hpcai.optim.schedules import Schedule
from hpcai.train import votes
from hpcai.train.history import Progress
from hpcai.train.options.options import Options
from hpcai.train.outcome import Evaluation, Report
from hpcai.train.replica import Replica
from hpcai.train.report.reporter import Reporter
from hpcai.train.saving import Saver
from hpcai.xp import Array


class Part(NamedTuple):
    """A rank's part in a group of ranks: their communicator, this rank's replica, and the progress."""

    comm: Communicator
    replica: Replica
    progress: Progress


@dataclass
class Run:
    """One rank's training run: the state that a step changes, and all that a recovery from failed ranks needs."""

    options: Options
    dataset: Dataset
    reserve: Membership
    comm: Communicator
    replica: Replica
    progress: Progress
    reporter: Reporter
    schedule: Schedule
    total: int
    saver: Saver
    written: int
    """The step of the last checkpoint."""
    counted: Array = field(default_factory=votes.none)
    """The sums of all ranks' votes in the last step."""
    lost: list[int] = field(default_factory=list)
    """The ranks that failed before the last recovery."""
    failed: float = 0.0
    """The time at which this failure was noticed, in seconds since 1970."""
    repeated: int = -1
    """The step after which ranks last stalled and began again although none had failed."""
    evaluated: Evaluation | None = None
    """The last evaluation by the present ranks; None after ranks have failed or joined."""
    came_later: bool = False
    """Whether this rank was started in place of a failed rank."""
    in_script: bool = False
    """Whether a program continues after the run, on ranks that were there from the start."""
    rows: Array = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        self.resized()

    @property
    def folder(self) -> Path:
        """The folder that the run writes into."""
        return Path(self.options.run_dir or "runs")

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return sharding.steps_per_epoch(self.dataset.train_samples, self.options.batch)

    def switch_to(self, part: Part) -> None:
        """Continue with this part, among its ranks."""
        self.comm, self.replica, self.progress = part

    def resized(self) -> None:
        """Allocate the buffer for this rank's samples of a batch, after the ranks have changed; drop the last evaluation."""
        self.evaluated = None
        grain = self.replica.grain or 1
        batch = min(self.options.batch, self.dataset.train_samples)
        grains = -(-batch // grain)
        self.rows = room(self.dataset, min(batch, -(-grains // self.replica.mesh.dp.size) * grain), self.replica)

    def completed(self, outcome: Report) -> None:
        """Count and report a step."""
        self.progress.add(outcome.loss_sum, outcome.targets)
        self.counted = outcome.votes
        self.reporter.step(self.progress.step, self.schedule(self.progress.step - 1), outcome)


def batch_of(dataset: Dataset, options: Options, replica: Replica, at: int, rows: Array) -> tuple[Array, Array, int]:
    """Return this rank's samples and targets of step `at`, and the number of samples in the global batch. rows: see `room`."""
    dp = replica.mesh.dp
    batch = sharding.global_batch(dataset.train_samples, options.batch, options.seed, at)
    index = sharding.shard(batch, dp.rank, dp.size, replica.grain or 1)
    epoch = at // sharding.steps_per_epoch(dataset.train_samples, options.batch)
    x, target = take(dataset, index, rows, phase=sharding.phase(dataset.context, options.seed, epoch))
    return x, target, len(batch)


def room(dataset: Dataset, samples: int, replica: Replica) -> Array:
    """Return a buffer for this many samples, (samples, features); (0, ...) for text, which needs none."""
    return np.empty((0 if dataset.context else samples, dataset.x_train.shape[-1]), replica.params.dtype)
