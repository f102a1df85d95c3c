"""How far a run has come, and its way through checkpoints: saving, finding, checking, going on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.errors import CheckpointError
from hpcai.train import assembly, checkpoint, memories
from hpcai.train.checkpoint import Checkpoint
from hpcai.train.config import Options
from hpcai.train.replica import Replica
from hpcai.xp import Array

WRITTEN = ("checkpoints", "metrics.jsonl", "summary.json", "loss.png")
"""What a run puts into its folder."""

IDENTITY = (
    "data",
    "label",
    "ignore",
    "model",
    "hidden",
    "channels",
    "activation",
    "batch",
    "optimizer",
    "reduction",
    "seed",
    "dtype",
)
"""The options that a run must share with a checkpoint to go on from it."""

GPT_IDENTITY = ("layers", "width", "heads", "context", "norm", "tied", "dropout")
"""Further ones of a gpt."""


@dataclass
class Progress:
    """Steps done, a record for each finished epoch, and the running sums of the current one."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    loss_sum: float = 0.0
    samples: int = 0

    def add(self, loss_sum: float, samples: int) -> None:
        """Count one step."""
        self.step += 1
        self.loss_sum += loss_sum
        self.samples += samples

    def close_epoch(self, test_loss: float, test_accuracy: float | None) -> dict[str, Any]:
        """Turn the running sums into an epoch's record."""
        record = {
            "step": self.step,
            "loss": self.loss_sum / self.samples,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        }
        self.history.append(record)
        self.loss_sum, self.samples = 0.0, 0
        return record


def start(options: Options, mine: Replica, comm: Communicator, folder: Path) -> Progress:
    """Where to begin. With a checkpoint, `mine` is filled from it on every rank; without one an earlier run's files in
    `folder` are moved to previous-N, so that nothing is lost and nothing is mixed.

    Raises: CheckpointError on all ranks.
    """

    loaded: list[Checkpoint] = []

    def find() -> tuple[Progress, Any, Any, Any] | None:
        path = _chosen(options.resume, folder)
        if path is None:
            _set_aside(folder)
            return None
        _, found = checkpoint.read(path)
        _check(path, found, options, mine)
        loaded.append(found)
        own = assembly.arrays_of(mine)
        extra = {name: (array.shape, str(array.dtype)) for name, array in found.arrays.items() if name not in own}
        return Progress(**found.meta["progress"]), found.meta.get("counters"), extra, found.meta.get("loss_scale")

    begun = comm.on_root(find)
    if begun is None:
        return Progress()
    progress, counters, extra, scale = begun
    if mine.half is not None and scale:
        mine.half.scale, mine.half.good = scale
    assembly.distribute(mine, loaded[0].arrays if loaded else {})
    kept: dict[str, Array] = {}
    for name, (shape, dtype) in extra.items() if mine.reducers else ():
        here = np.require(loaded[0].arrays[name], requirements=["C", "W"]) if loaded else np.empty(shape, dtype)
        kept[name] = comm.broadcast(here)
    memories.restore(mine, kept, counters)
    return progress


def save(options: Options, mine: Replica, progress: Progress, comm: Communicator, folder: Path) -> None:
    """Write a checkpoint on rank 0; every rank waits until it is on disk."""
    meta = {"identity": _identity(options, mine), "progress": dataclasses.asdict(progress), "ranks": comm.size}
    meta["compress"] = options.compress
    meta["loss_scale"] = None if mine.half is None else [mine.half.scale, mine.half.good]
    arrays, meta["counters"] = memories.gather(mine)
    made = Checkpoint(assembly.collect(mine, assembly.arrays_of(mine)) | arrays, meta)
    comm.on_root(lambda: str(checkpoint.write(folder / "checkpoints", progress.step, made, options.keep)))


def compression(options: Options, folder: Path) -> str | None:
    """How gradients travelled in the run that `options` go on from; None where there is none."""
    path = _chosen(options.resume, folder)
    return None if path is None else checkpoint.read(path)[1].meta.get("compress")


def newest(folder: Path) -> Path | None:
    """The newest checkpoint of a run's folder."""
    found = checkpoint.all_in(folder / "checkpoints")
    return found[-1] if found else None


def _chosen(resume: str, folder: Path) -> Path | None:
    if resume in ("never", "auto"):
        return newest(folder) if resume == "auto" else None
    path = Path(resume)
    return newest(path) or path if (path / "checkpoints").is_dir() else path


def _set_aside(folder: Path) -> None:
    present = [folder / name for name in WRITTEN if (folder / name).exists()]
    if present:
        numbers = [int(p.name.split("-")[1]) for p in folder.glob("previous-*") if p.name.split("-")[1].isdigit()]
        old = folder / f"previous-{max(numbers, default=0) + 1}"
        old.mkdir()
        for path in present:
            path.rename(old / path.name)


def _identity(options: Options, mine: Replica) -> dict[str, Any]:
    names = (*IDENTITY, *GPT_IDENTITY) if options.model == "gpt" else IDENTITY
    values = {name: getattr(options, name) for name in names}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return values | {
        "optimizer": mine.optimizer.name,
        "parameters": [[s.name, list(s.shape)] for s in assembly.whole_layout(mine.whole).slots],
    }


def _check(path: Path, found: Checkpoint, options: Options, mine: Replica) -> None:
    """The checkpoint must be of this run: going on with another order of samples or another model is no continuation."""
    old, new = found.meta.get("identity", {}), _identity(options, mine)
    differing = [name for name in new if old.get(name) != new[name]]
    if differing:
        name = differing[0]
        said = f"{name} {old.get(name)!r}, this run has {new[name]!r}" if name != "parameters" else "other parameters"
        raise CheckpointError(f"checkpoint {path} was made with {said}; give the same options, or start afresh without --resume")
    size = assembly.whole_layout(mine.whole).size
    for name, array in assembly.arrays_of(mine).items():
        if name not in found.arrays or found.arrays[name].shape != (size,) or found.arrays[name].dtype != array.dtype:
            raise CheckpointError(f"checkpoint {path} has no array {name} of {array.dtype}[{size}]")
