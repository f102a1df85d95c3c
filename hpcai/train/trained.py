"""Training from Python, and its results on one rank: parameters, predictions and the contents of checkpoints."""

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
"""How many samples are predicted together."""


class Saved(NamedTuple):
    """The contents of a checkpoint.

    step: the number of steps done. parameters, optimizer: arrays by name, in the model's shapes. history: a record for each
    epoch. encoding: of the data's columns and labels. options: those options of the run that may change when it is resumed.
    """

    step: int
    parameters: dict[str, Array]
    optimizer: dict[str, dict[str, Array]]
    history: list[dict[str, Any]]
    encoding: dict[str, Any] | None
    options: dict[str, Any] | None


def load(path: str | Path) -> Saved:
    """Return a checkpoint as named numpy arrays, on this rank alone and without MPI. Any mesh may have written it.

    Args:   path: a run's folder, a folder of checkpoints, or a checkpoint (step-N); or the URL of one of these. Of several
            checkpoints the newest complete one is read.
    Raises: CheckpointError if there is no checkpoint, or it is damaged.
    Cost:   memory for all parameters and optimizer state.
    """
    place, name = resume.meant(str(path))
    if not name:
        name = next((one for one in reversed(place.names()) if format.complete(place, one)), "")
    if not name or absent.refusal(str(path), place, name):
        raise CheckpointError(
            f"{path} holds no complete checkpoint; {absent.ADVICE.removesuffix(', or leave --resume out to start afresh')}"
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
    """A run that has ended, the same on all ranks. No method communicates.

    summary: the contents of summary.json. checkpoint: the path of the last checkpoint; digest: of its manifest. model: the whole
    model. data: the data set, without its samples. comm: the ranks that are left; with `elastic` ranks may have failed, and the
    communicator given to `fit` can then no longer be used.
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
        """The arrays by name, read from the last checkpoint at first access. Raises: CheckpointError."""
        return load(self._kept(self.checkpoint)).parameters

    def _kept(self, path: str) -> str:
        """Return the path of the checkpoint, which a later run in the same folder may have moved. Raises: CheckpointError."""
        name, folder = Path(path).name, Path(path).parent
        aside = [*folder.glob(f"previous-*/{name}"), *folder.parent.glob(f"previous-*/{folder.name}/{name}")]
        for one in (path, *map(str, aside)):
            if format.digest(one) == self.digest:
                return one
        raise CheckpointError(
            f"this run's checkpoint {path} does not exist any more: it was removed, or another run writes there; give each fit "
            "its own run_dir, or read the parameters earlier"
        )

    @property
    def best(self) -> dict[str, Any] | None:
        """The best epoch: metric, step, value, and with keep_best its checkpoint; None without keep_best and patience."""
        return self.summary.get("best")

    @property
    def confusion(self) -> Array | None:
        """The (classes, classes) counts of test samples, by class and by predicted class; None without classes, or with more
        than 100. The order is that of summary["classes"], which has precision, recall, f1 and support of each class.
        """
        found = self.summary.get("confusion")
        return None if found is None else np.array(found)

    def save(self, path: str | Path) -> None:
        """Write the parameters to FILE.npz or FILE.safetensors, completely or not at all. Every rank that calls this writes.

        Raises: UsageError, CheckpointError, OSError.
        """
        if not isinstance(path, (str, os.PathLike)) or Path(path).suffix not in (".npz", ".safetensors"):
            raise UsageError(f"save wants a file that ends in .npz or .safetensors, got {path!r}")
        target = Path(path)
        part = target.with_name(f".{os.getpid()}-{target.name}")
        part.touch()  # raises OSError if the file cannot be written; safetensors would raise its own errors
        try:
            _write(part, self.parameters)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    def scores(self, x: Any) -> Array:
        """Return the last layer's output, (n, outputs), for samples x in the form of the data set: (n, ...) numbers.

        Raises: UsageError.
        """
        if is_external(self.model) and not self.model.loss.counts:
            raise UsageError(f"model {self.model.name} has no predict(parameters, x), so it cannot predict")
        rows = self._rows(np.asarray(x))
        flat = np.zeros(self.model.layout.size, np.float64 if self.options.dtype == "f64" else np.float32)
        for key, view in arena.views(flat, self.model.layout).items():
            view[...] = self.parameters[key].reshape(view.shape)  # in the model some have more dims, for splitting
        layers = models.per_layer(self.model, flat)
        parts = [rows[i : i + PREDICTED] for i in range(0, len(rows), PREDICTED)]
        found = [np.array(models.forward(self.model, layers, models.caches(self.model), part)) for part in parts]
        return np.concatenate(found) if found else np.zeros((0, self.data.outputs))

    def predict(self, x: Any) -> Array:
        """Return the label of each of n samples as in the data set, or its quantity in the data's unit: (n,).

        Without an encoding, return class numbers, (n,), or for quantities the scores, (n, outputs).
        Raises: UsageError for samples of another shape.
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
        squeezed = tuple(n for n in self.data.shape if n > 1)  # images of one channel often lack that dim
        fits = x.shape[1:] in (self.data.shape, (wanted,)) or tuple(n for n in x.shape[1:] if n > 1) == squeezed
        if not x.ndim or x.dtype.kind not in "buif" or not fits:
            raise UsageError(
                f"x has shape {x.shape} and dtype {x.dtype}; expected numbers, (n, {', '.join(map(str, self.data.shape))})"
            )
        if not np.isfinite(x).all():
            raise UsageError("x has nan or infinity; expected finite numbers, as in training: fill in values or leave rows out")
        if self.data.samples is not None:
            return np.ascontiguousarray(x.reshape(len(x), *self.data.shape), np.int64 if x.dtype.kind in "iub" else dtype)
        return (x.reshape(len(x), *self.data.shape) * self.data.scale + self.data.shift).astype(dtype)


def _write(path: Path, parameters: dict[str, Array]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **parameters)  # type: ignore[arg-type]  # no parameter is called allow_pickle
        return
    if find_spec("safetensors") is None:
        raise UsageError("FILE.safetensors needs the package safetensors: pip install safetensors, or save to FILE.npz")
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
    """Train on all ranks of a communicator. Collective; all ranks give the same arguments.

    Args:
        model: a name such as "mlp"; an nn.Model; an object with `parameters` and `loss_and_gradients` (see nn.external); a
            function that returns one of these and may take the data set; or the function's name, "package.module:function".
        data: a name such as "digits" or "csv:PATH"; arrays (x, y) or (x, y, x_test, y_test), of which only rank 0's are read; a
            pair of objects with __len__ and take(index) (see data.Samples); the result of data.from_arrays or from_samples; a
            function that returns one of these, called on rank 0, and for such objects on all ranks; or the function's name.
        comm: the ranks that train; by default all ranks that the launcher started.
        optimizer: a name such as "adam", an optim.Optimizer, a function of the model that returns one, or the function's name.
        sinks: objects that receive the run's events, on rank 0 (see monitor.Sink). after_step, after_epoch: functions that are
            called with the values of these events.
        options: those of `python -m hpcai.train`, with underscores: steps=100, compress="int8", zero=1, run_dir="runs/a".
            Files and variables that give options to that command are not read. With elastic="shrink" or "grow" (under mpirun
            --with-ft ulfm) the run continues without failed ranks, or with replacements. A rank that is started as a replacement
            builds model, data and optimizer by their functions' names, and ends with the training. Code after `fit` runs only on
            the original ranks, which do not wait for replacements. If no original rank is left, the run ends with exit code 85;
            a start with resume="auto" then runs the rest.
    Returns: a Trained, on all ranks alike.
    Raises: UsageError, DataError, FolderTaken, CheckpointError, NonFiniteError, RanksLost, Leave, OSError, on all ranks alike.
    """
    own.require_guard()
    event.require(sinks)
    if comm is not None and not isinstance(comm, Communicator):
        raise UsageError(f"comm is {type(comm).__name__}; expected an hpcai.Communicator from hpcai.init(), or one split from it")
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
    """Return the options, the same on all ranks. Only the user's own objects are those of each rank. Collective."""
    wrapped = {kind: own_name.wrapped(value, kind) for kind, value in own_ones.items() if value is not None}
    for name in ("run_dir", "checkpoint_dir"):
        if str(options.get(name, "")).startswith("~"):
            options[name] = os.path.expanduser(options[name])
    chosen = comm.on_root(lambda: parser.of(wrapped | options))
    named = comm.allgather_object({kind: "" if isinstance(one, own_name.Own) else one for kind, one in wrapped.items()})
    for rank, theirs in enumerate(named):
        if theirs.keys() != named[0].keys() or any(bool(theirs[kind]) != bool(named[0][kind]) for kind in theirs):
            raise UsageError(
                f"model, data or optimizer are not given in the same way on rank {rank} as on rank 0; give the same on all ranks"
            )
    _require_all(comm, chosen)
    if chosen.dry_run or chosen.find_lr:
        name = "dry_run" if chosen.dry_run else "find_lr"
        raise UsageError(f"{name} is for the command: python -m hpcai.train --{name.replace('_', '-')} --model module:function")
    given: dict[str, Any] = {kind: name for kind, name in wrapped.items() if isinstance(name, own_name.Own)}
    return dataclasses.replace(chosen, **given)


def _require_all(comm: Communicator, chosen: Options) -> None:
    """Raise UsageError if `elastic` is given and `comm` does not have all ranks that the launcher started."""
    if chosen.elastic != "never" and comm.wire.ranks != job.init().wire.ranks:
        raise UsageError(f"elastic={chosen.elastic!r} is for all ranks that the launcher started; leave comm out")
