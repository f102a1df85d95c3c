"""Training from Python, and what comes of it: parameters, predictions and what checkpoints hold, on one rank."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpcai import arena
from hpcai.checkpoint import format
from hpcai.comm import job
from hpcai.comm.communicator import Communicator
from hpcai.data.dataset import Dataset
from hpcai.errors import CheckpointError, HpcaiError, RankFailed, StallError, UsageError
from hpcai.monitor import Sink, event, functions
from hpcai.nn import models
from hpcai.nn.external import is_external
from hpcai.nn.models import Model
from hpcai.train import absent, build, loop, own, resume
from hpcai.train.history import Progress
from hpcai.train.options import own_name, parser
from hpcai.train.options.options import Options
from hpcai.xp import Array

PREDICTED = 1024
"""Samples that are predicted together."""


class Saved(NamedTuple):
    """The contents of a checkpoint.

    step: how many were done. parameters, optimizer: arrays by name, in the model's shapes. history: a record for each epoch.
    encoding: of the data's columns and labels. options: of the run, as far as they may differ in one that goes on.
    """

    step: int
    parameters: dict[str, Array]
    optimizer: dict[str, dict[str, Array]]
    history: list[dict[str, Any]]
    encoding: dict[str, Any] | None
    options: dict[str, Any] | None


def load(path: str | Path) -> Saved:
    """A checkpoint as named numpy arrays, on this rank alone and without MPI, whatever mesh wrote it.

    Args:   path: a run's folder, one of checkpoints, or a checkpoint (step-N); or a URL of such. Of several the newest is taken.
    Raises: CheckpointError where there is none, or one that is damaged.
    Cost:   all of its parameters and optimizer state in memory.
    """
    place, name = resume.meant(str(path))
    if not name:
        name = next((one for one in reversed(place.names()) if format.complete(place, one)), "")
    if not name or absent.refusal(str(path), place, name):
        raise CheckpointError(
            f"{path} holds no whole checkpoint; {absent.ADVICE.removesuffix(', or leave --resume out to start afresh')}"
        )
    step, found = format.read(place.path(name))
    layout = arena.layout({key: tuple(shape) for key, shape in found.meta["identity"]["parameters"]})
    states = {key.partition(".")[2]: flat for key, flat in found.arrays.items() if key.startswith("optimizer.")}
    return Saved(
        step,
        arena.views(found.arrays["params"], layout),
        {key: arena.views(flat, layout) for key, flat in states.items()},
        Progress.of(found.meta["progress"]).history,
        found.meta.get("encoding"),
        found.meta.get("options"),
    )


@dataclasses.dataclass
class Trained:
    """A run that has ended, the same on all ranks. Nothing here communicates.

    summary: what summary.json has. checkpoint: the last one; digest: of its manifest. model: the whole of it. data: the data set,
    without its samples. comm: of the ranks that are here; with `elastic` some may be gone, and the one that was given is useless.
    """

    summary: dict[str, Any]
    history: list[dict[str, Any]]
    checkpoint: str
    model: Model
    data: Dataset
    options: Options
    comm: Communicator
    digest: str

    @functools.cached_property
    def parameters(self) -> dict[str, Array]:
        """Arrays by name, read from the last checkpoint when they are first asked for. Raises: CheckpointError."""
        return load(self._kept(self.checkpoint)).parameters

    def _kept(self, path: str) -> str:
        """The checkpoint, which a later run in the same folder may have set aside. Raises: CheckpointError."""
        name, folder = Path(path).name, Path(path).parent
        aside = [*folder.glob(f"previous-*/{name}"), *folder.parent.glob(f"previous-*/{folder.name}/{name}")]
        for one in (path, *map(str, aside)):
            if format.digest(one) == self.digest:
                return one
        raise CheckpointError(
            f"this run's checkpoint {path} is not there any more: it was removed, or another run writes there; give each fit a "
            "run_dir of its own, or ask for the parameters before"
        )

    @property
    def best(self) -> dict[str, Any] | None:
        """The best epoch by --keep-best: metric, step, value, and the checkpoint that is kept of it; None without."""
        return self.summary.get("best")

    @property
    def confusion(self) -> Array | None:
        """(classes, classes) counts of test samples, by class and by what was predicted; None where there are no classes, or more
        than 100. In the order of summary["classes"], which has precision, recall, f1 and support of each.
        """
        found = self.summary.get("confusion")
        return None if found is None else np.array(found)

    def save(self, path: str | Path) -> None:
        """Write the parameters to FILE.npz or FILE.safetensors, whole or not at all. Every rank that calls it writes.

        Raises: UsageError, OSError.
        """
        if not isinstance(path, (str, os.PathLike)) or Path(path).suffix not in (".npz", ".safetensors"):
            raise UsageError(f"save wants a file that ends in .npz or .safetensors, got {path!r}")
        target = Path(path)
        part = target.with_name(f".{os.getpid()}-{target.name}")
        part.touch()  # raises OSError where it cannot be; safetensors has errors of its own
        try:
            _write(part, self.parameters)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    def scores(self, x: Any) -> Array:
        """The last layer's output, (n, outputs), for samples x as the data set has them: (n, ...) numbers. Raises: UsageError."""
        if is_external(self.model) and not self.model.loss.counts:
            raise UsageError(f"model {self.model.name} has no predict(parameters, x), so nothing can be predicted with it")
        rows = self._rows(np.asarray(x))
        flat = np.zeros(self.model.layout.size, np.float64 if self.options.dtype == "f64" else np.float32)
        for key, view in arena.views(flat, self.model.layout).items():
            view[...] = self.parameters[key].reshape(view.shape)  # some have more dims where ranks can share them out
        layers = models.per_layer(self.model, flat)
        parts = [rows[i : i + PREDICTED] for i in range(0, len(rows), PREDICTED)]
        found = [np.array(models.forward(self.model, layers, models.caches(self.model), part)) for part in parts]
        return np.concatenate(found) if found else np.zeros((0, self.data.outputs))

    def predict(self, x: Any) -> Array:
        """For each of n samples its label, as the data set had it, or its quantity in the data's unit: (n,).

        Raises: UsageError for samples of another shape, or where the data set does not say what outputs mean.
        """
        scores = self.scores(x)
        label = (self.data.encoding or {}).get("label") or {}
        if label.get("kind") == "number":
            return np.ldexp(scores[:, 0] * label["deviation"] + label["mean"], label.get("exponent", 0))
        if not self.data.classes and not self.data.context:
            return scores
        values = np.asarray(label["values"]) if label.get("kind") == "classes" else None
        best = scores.argmax(1)
        return best if values is None else values[np.minimum(best, len(values) - 1)]

    def _rows(self, x: Array) -> Array:
        """Return rows in the shape that the first layer takes."""
        dtype = np.float64 if self.options.dtype == "f64" else np.float32
        if self.data.context:
            return np.ascontiguousarray(x, np.int64 if x.dtype.kind in "iu" else dtype)
        wanted = int(np.prod(self.data.shape))
        squeezed = tuple(n for n in self.data.shape if n > 1)  # as images of one channel often are
        fits = x.shape[1:] in (self.data.shape, (wanted,)) or tuple(n for n in x.shape[1:] if n > 1) == squeezed
        if not x.ndim or x.dtype.kind not in "buif" or not fits:
            raise UsageError(
                f"x has shape {x.shape} and dtype {x.dtype}; wanted are numbers, (n, {', '.join(map(str, self.data.shape))})"
            )
        if not np.isfinite(x).all():
            raise UsageError("x has nan or infinity; wanted are finite numbers, as in training: fill or leave out")
        if self.data.samples is not None:
            return np.ascontiguousarray(x.reshape(len(x), *self.data.shape), np.int64 if x.dtype.kind in "iub" else dtype)
        return (x.reshape(len(x), *self.data.shape) * self.data.scale + self.data.shift).astype(dtype)


def _write(path: Path, parameters: dict[str, Array]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **parameters)  # type: ignore[arg-type]  # of which none is called allow_pickle
        return
    if find_spec("safetensors") is None:
        raise UsageError("FILE.safetensors wants the package safetensors: pip install safetensors, or save to FILE.npz")
    from safetensors.numpy import save_file

    save_file({key: np.ascontiguousarray(array) for key, array in parameters.items()}, path)


def fit(
    model: Any = None,
    data: Any = None,
    comm: Communicator | None = None,
    *,
    optimizer: Any = None,
    sinks: Sequence[Sink] = (),
    after_step: Callable[[dict[str, Any]], object] | None = None,
    after_epoch: Callable[[dict[str, Any]], object] | None = None,
    **options: Any,
) -> Trained:
    """Train on all ranks of a communicator. Collective; all ranks give the same.

    Args:
        model: "mlp" and the like; an nn.Model; an object with `parameters` and `loss_and_gradients` (see nn.external); a function
            that gives one of these, which may want the data set; or its name, "package.module:function".
        data: "digits", "csv:PATH" and the like; (x, y) or (x, y, x_test, y_test), arrays of which only rank 0's are read; a pair
            of objects with __len__ and take(index) (see data.Samples); what data.from_arrays or from_samples gives; a function
            that gives one of these, called on rank 0, and of objects on all; or its name.
        comm: of the ranks that train; by default all that the launcher started.
        optimizer: "adam" and the like, or an optim.Optimizer, a function of the model that gives one, or its name.
        sinks: what hears the run's events, on rank 0 (see monitor.Sink). after_step, after_epoch: functions of their values.
        options: those of `python -m hpcai.train`, with underscores: steps=100, compress="int8", zero=1, run_dir="runs/a".
            Files and variables that give options to that command are not read. With elastic="shrink" or "grow" (under mpirun
            --with-ft ulfm) ranks that fail are done without or replaced; ones that are started for it make model, data and
            optimizer by the functions' names, and end with the training: what stands behind `fit` runs on the others alone,
            which do not wait for them. Where none of those is left the run ends with 85: resume="auto" runs the rest.
    Returns: a Trained, on all ranks alike.
    Raises: UsageError, DataError, FolderTaken, CheckpointError, NonFiniteError, RanksLost, Leave, OSError, on all ranks alike.
    """
    own.require_guard()
    event.require(sinks)
    if comm is not None and not isinstance(comm, Communicator):
        raise UsageError(
            f"comm is {type(comm).__name__}; wanted is an hpcai.Communicator, as hpcai.init() gives, or one split from it"
        )
    heard = [*sinks, functions(after_step, after_epoch)] if after_step or after_epoch else list(sinks)
    try:
        comm = job.init() if comm is None else comm
        chosen = _chosen(comm, {"model": model, "data": data, "optimizer": optimizer}, options)
        ended = loop.run_to_end(chosen, comm, heard, in_script=True)
    except HpcaiError as error:
        error.everywhere = not isinstance(error, (StallError, RankFailed))
        raise
    where = ended.checkpoint
    empty: dict[str, Any] = {name: getattr(ended.dataset, name)[:0] for name in ("x_train", "y_train", "x_test", "y_test")}
    empty |= {"x_validation": None, "y_validation": None}
    return Trained(
        ended.summary,
        ended.history,
        where if "://" in where else os.path.abspath(where),
        build.build_model(ended.options, ended.dataset),
        ended.dataset._replace(**empty),
        ended.options,
        ended.comm,
        ended.digest,
    )


def _chosen(comm: Communicator, own_ones: dict[str, Any], options: dict[str, Any]) -> Options:
    """The options, the same on all ranks but for what is of one's own, which each has by itself. Collective."""
    wrapped = {kind: own_name.wrapped(value, kind) for kind, value in own_ones.items() if value is not None}
    for name in ("run_dir", "checkpoint_dir"):
        if str(options.get(name, "")).startswith("~"):
            options[name] = os.path.expanduser(options[name])
    chosen = comm.on_root(lambda: parser.of(wrapped | options))
    named = comm.allgather_object({kind: "" if isinstance(one, own_name.Own) else one for kind, one in wrapped.items()})
    for rank, theirs in enumerate(named):
        if theirs.keys() != named[0].keys() or any(bool(theirs[kind]) != bool(named[0][kind]) for kind in theirs):
            raise UsageError(
                f"model, data and optimizer are given in other ways on rank {rank} than on rank 0; give the same on all"
            )
    _require_all(comm, chosen)
    if chosen.dry_run or chosen.find_lr:
        name = "dry_run" if chosen.dry_run else "find_lr"
        raise UsageError(f"{name} is for the command: python -m hpcai.train --{name.replace('_', '-')} --model module:function")
    given: dict[str, Any] = {kind: name for kind, name in wrapped.items() if isinstance(name, own_name.Own)}
    return dataclasses.replace(chosen, **given)


def _require_all(comm: Communicator, chosen: Options) -> None:
    """Raise UsageError for ranks that could not go on without others, which are not all."""
    if chosen.elastic != "never" and comm.wire.ranks != job.init().wire.ranks:
        raise UsageError(f"elastic={chosen.elastic!r} is for all ranks that the launcher started; leave comm out")
