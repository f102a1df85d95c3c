"""Arrays in npz archives."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from hpcai.data.dataset import Dataset, hold_out
from hpcai.data.targets import Task, targets
from hpcai.errors import DataError
from hpcai.xp import Array


def load(path: Path, task: Task | None = None) -> Dataset:
    """Arrays x (n, ...) and y (n,), or x_train, y_train, x_test, y_test. Bytes are scaled to [-1, 1]; task: see targets.py."""
    try:
        with np.load(path) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a readable npz file of plain arrays ({error})") from None
    if {"x", "y"} <= arrays.keys():
        _same_length(path, arrays["x"], arrays["y"])
        train, test = hold_out(len(arrays["x"]))
        parts = [arrays["x"][train], arrays["y"][train], arrays["x"][test], arrays["y"][test]]
    elif {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        parts = [arrays[key] for key in ("x_train", "y_train", "x_test", "y_test")]
    else:
        raise DataError(
            f"{path} has arrays {', '.join(sorted(arrays)) or '(none)'}; wanted x and y, or x_train, y_train, x_test and y_test"
        )
    return _from_arrays(path, task, *parts)


def _from_arrays(path: Path, task: Task | None, x_train: Array, y_train: Array, x_test: Array, y_test: Array) -> Dataset:
    for x, y in ((x_train, y_train), (x_test, y_test)):
        _same_length(path, x, y)
        if x.dtype.kind not in "uif" or not np.isfinite(x).all() or y.dtype.kind not in "uif" or not np.isfinite(y).all():
            raise DataError(f"{path}: x ({x.dtype}) and y ({y.dtype}) must be finite numbers")
    shape = x_train.shape[1:] or (1,)
    is_bytes = x_train.dtype == np.uint8
    dtype = np.uint8 if is_bytes else np.float32
    rows = [np.ascontiguousarray(x.reshape(len(x), -1), dtype) for x in (x_train, x_test)]
    y = targets(np.ravel(y_train), np.ravel(y_test), task)
    scale, shift = (2 / 255, -1.0) if is_bytes else (1.0, 0.0)
    return Dataset(
        f"npz:{path}",
        rows[0],
        y.train,
        rows[1],
        y.test,
        shape,
        y.classes,
        scale,
        shift,
        y.unit,
        warnings=y.warnings,
        notes=(f"y: {y.said}",),
        encoding={"label": y.encoding},
    )


def _same_length(path: Path, x: Array, y: Array) -> None:
    if x.ndim < 1 or y.ndim < 1 or len(x) != len(y) or y.size != len(y) or len(x) < 2:
        raise DataError(f"{path}: x of shape {x.shape} and y of shape {y.shape} do not belong together; wanted (n, ...) and (n,)")
