"""The parts of one rank's training under way."""

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
    """A rank's part among certain ranks, and the places of all."""

    comm: Communicator
    replica: Replica
    progress: Progress


@dataclass
class Run:
    """One rank's training: everything that a step changes, and all that it takes to go on without a rank that failed."""

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
    """All ranks' votes in the last step."""
    lost: list[int] = field(default_factory=list)
    """Ranks that failed last."""
    failed: float = 0.0
    """When that was noticed, in seconds since 1970."""
    repeated: int = -1
    """The step after which all that live had last to begin anew, though none had failed."""
    evaluated: Evaluation | None = None
    """What these ranks found of the model last; None after others of them failed, or came."""
    came_later: bool = False
    """Whether this rank was started in place of one that failed."""
    in_script: bool = False
    """Whether a program goes on behind the run, on ranks that were there from the start."""
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
        """Go on with this part, among its ranks."""
        self.comm, self.replica, self.progress = part

    def resized(self) -> None:
        """Make room for this rank's samples of a batch, after the number of ranks has changed; what others found is lost."""
        self.evaluated = None
        grain = self.replica.grain or 1
        batch = min(self.options.batch, self.dataset.train_samples)
        grains = -(-batch // grain)
        self.rows = room(self.dataset, min(batch, -(-grains // self.replica.mesh.dp.size) * grain), self.replica)

    def completed(self, outcome: Report) -> None:
        """Count a step."""
        self.progress.add(outcome.loss_sum, outcome.targets)
        self.counted = outcome.votes
        self.reporter.step(self.progress.step, self.schedule(self.progress.step - 1), outcome)


def batch_of(dataset: Dataset, options: Options, replica: Replica, at: int, rows: Array) -> tuple[Array, Array, int]:
    """This rank's samples and targets of step `at`, and how many samples the global batch has. rows: room for them."""
    dp = replica.mesh.dp
    batch = sharding.global_batch(dataset.train_samples, options.batch, options.seed, at)
    index = sharding.shard(batch, dp.rank, dp.size, replica.grain or 1)
    epoch = at // sharding.steps_per_epoch(dataset.train_samples, options.batch)
    x, target = take(dataset, index, rows, phase=sharding.phase(dataset.context, options.seed, epoch))
    return x, target, len(batch)


def room(dataset: Dataset, samples: int, replica: Replica) -> Array:
    """Return a buffer for so many samples; empty for text, which needs none."""
    return np.empty((0 if dataset.context else samples, dataset.x_train.shape[-1]), replica.params.dtype)
