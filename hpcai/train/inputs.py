"""A run's data set on all ranks, and the checks before the run writes any file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.data import sources
from hpcai.data.contents import contents
from hpcai.data.dataset import Dataset
from hpcai.data.validation import Validation
from hpcai.errors import DataError, UsageError
from hpcai.train import best, build, own
from hpcai.train.options import own_name
from hpcai.train.options.options import Options
from hpcai.train.report import curve
from hpcai.xp import Array


def load(options: Options, comm: Communicator) -> Dataset:
    """Return the data set that the options name, on all ranks. Collective."""
    return share(comm, lambda: load_alone(options))


def load_alone(options: Options) -> Dataset:
    """Return the data set that the options name, on this rank alone."""
    held = None if options.validation is None else Validation(options.validation, options.seed)
    if own_name.is_own(options.data):
        return own.data(options.data, held)
    where = Path(options.data_dir) if options.data_dir else None
    o = options
    return sources.load(o.data, where, o.label_column, o.ignore_columns, o.context, o.categorical_columns, o.task, held)


def share(comm: Communicator, load: Callable[[], Dataset], elsewhere: Callable[[], Dataset] | None = None) -> Dataset:
    """Load the data set on rank 0 and broadcast it, so that one process reads the files and all ranks raise the same error.
    Collective. Objects that hand out samples are not sent: every other rank calls `elsewhere`, by default `load`, for its own.
    """
    loaded: list[Dataset] = []

    def describe() -> tuple[Dataset, bool]:
        dataset = load()
        loaded.append(dataset if dataset.contents else dataset._replace(contents=contents(dataset)))
        empty: dict[str, Any] = {name: (array.shape, array.dtype) for name, array in _arrays(loaded[0]).items()}
        return loaded[0]._replace(samples=None, **empty), dataset.samples is not None

    described, has_samples = comm.on_root(describe)
    arrays: dict[str, Array] = {}
    for name, (shape, dtype) in _arrays(described).items():
        array = np.require(_arrays(loaded[0])[name], requirements=["C", "W"]) if loaded else np.empty(shape, dtype)
        arrays[name] = comm.broadcast(array)
    samples = _samples(comm, lambda: loaded[0] if loaded else (elsewhere or load)()) if has_samples else None
    shared: dict[str, Any] = arrays
    return described._replace(samples=samples, **shared)


def _samples(comm: Communicator, load: Callable[[], Dataset]) -> tuple[Any, ...] | None:
    """Return this rank's objects that hand out samples. Collective.

    Raises: on all ranks if one fails: its own error there, and DataError with the first error on the others.
    """
    found, failure = None, None
    try:
        found = load().samples
    except Exception as error:
        failure = error
    failures = comm.allgather_object(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    if first := next((one for one in failures if one), None):
        raise DataError(f"another rank could not make the data: {first}")
    lengths = comm.allgather_object([len(one) for one in found or ()])
    for rank, theirs in enumerate(lengths):
        if theirs != lengths[0]:
            raise DataError(
                f"the data objects of rank 0 have lengths {lengths[0]}, but on rank {rank} {theirs}; lengths must be equal"
            )
    return found


def _arrays(dataset: Dataset) -> dict[str, Any]:
    names = ("x_train", "y_train", "x_test", "y_test", "x_validation", "y_validation")
    return {name: array for name in names if (array := getattr(dataset, name)) is not None}


def prepare(options: Options, ranks: int) -> Dataset:
    """Reject options that cannot work, and load the data. Runs on rank 0, before any file is written.

    Raises: UsageError, DataError.
    """
    build.check(options, ranks)
    if options.plot:
        curve.require_matplotlib()
    dataset = load_alone(options)
    _check_range(options, dataset)
    best.require(options, dataset)
    if own_name.is_own(options.model or "") or own_name.is_own(options.optimizer):
        model = build.build_model(options, dataset)
        best.require_counted(options, model)
        if own_name.is_own(options.model or ""):
            own.try_out(options.model or "", model, dataset)
        build.build_optimizer(options, model)
    for note in dataset.notes:
        print(f"hpcai: {note}", file=sys.stderr)
    for warning in dataset.warnings:
        print(f"hpcai: warning: {warning}", file=sys.stderr)
    return dataset


def _check_range(options: Options, dataset: Dataset) -> None:
    """Raise UsageError for features that are too large for --dtype f16."""
    if options.dtype == "f16" and not dataset.context and dataset.samples is None:
        parts = [x for x in (dataset.x_train, dataset.x_test, dataset.x_validation) if x is not None]
        ends = [float(end) * dataset.scale + dataset.shift for x in parts for end in (x.min(), x.max())]
        worst, most = max(ends, key=abs), float(np.finfo(np.float16).max)
        if abs(worst) > most:
            raise UsageError(f"--dtype f16 holds numbers up to {most:,.0f}, but the data have {worst:.6g}; take bf16 or f32")
