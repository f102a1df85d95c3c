"""A run's data set, on all ranks, and what must be right before anything is written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.data import sources
from hpcai.data.dataset import Dataset
from hpcai.train import report
from hpcai.train.build import check
from hpcai.train.config import Options
from hpcai.xp import Array


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


def prepare(options: Options, ranks: int) -> Dataset:
    """On rank 0, before anything is written: refuse what cannot work, and load the data."""
    check(options, ranks)
    if options.plot:
        report.require_matplotlib()
    where = Path(options.data_dir) if options.data_dir else None
    dataset = sources.load(options.data, where, options.label, options.ignore, options.context)
    for warning in dataset.warnings:
        print(f"hpcai: warning: {warning}", file=sys.stderr)
    return dataset
