"""Tables of numbers: CSV (plain, gz or zip) with named columns, and npz archives."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from hpcai.data.dataset import Dataset, hold_out
from hpcai.errors import DataError
from hpcai.xp import Array

MOST_CLASSES = 100
"""A label column of at most this many different whole numbers is a class, any other a number to predict."""


def load_csv(path: Path, label: str | None, ignore: Sequence[str] = ()) -> Dataset:
    """A numeric table with a header line; `label` names the column to predict, `ignore` columns to leave out.

    Features are standardised with the training rows' mean and deviation; a fifth of the rows, by a fixed shuffle, is for
    testing. A label of few whole numbers makes a classification, any other a regression (its target standardised too).

    Raises: DataError that names the line and column of an empty, text or infinite cell, a ragged row, or an unknown column.
    """
    try:
        with _open(path) as file:
            names, cells = _parse(path, file, label, ignore)
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table ({error})") from None
    assert label is not None  # _parse refuses a table without one
    where = names.index(label)
    x, y = np.delete(cells, where, axis=1), cells[:, where]
    features = [name for name in names if name != label]
    return _standardised(f"csv:{path}", x, y, features)


def load_npz(path: Path) -> Dataset:
    """Arrays x (n, ...) and y (n,), or x_train, y_train, x_test, y_test. Bytes are scaled to [-1, 1]."""
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
    return _from_arrays(path, *parts)


def _from_arrays(path: Path, x_train: Array, y_train: Array, x_test: Array, y_test: Array) -> Dataset:
    for x, y in ((x_train, y_train), (x_test, y_test)):
        _same_length(path, x, y)
        if x.dtype.kind not in "uif" or not np.isfinite(x).all() or y.dtype.kind not in "uif" or not np.isfinite(y).all():
            raise DataError(f"{path}: x ({x.dtype}) and y ({y.dtype}) must be finite numbers")
    shape = x_train.shape[1:] or (1,)
    is_bytes = x_train.dtype == np.uint8
    dtype = np.uint8 if is_bytes else np.float32
    rows = [np.ascontiguousarray(x.reshape(len(x), -1), dtype) for x in (x_train, x_test)]
    y_train, y_test, classes, unit = _targets(np.ravel(y_train), np.ravel(y_test))
    scale, shift = (2 / 255, -1.0) if is_bytes else (1.0, 0.0)
    return Dataset(f"npz:{path}", rows[0], y_train, rows[1], y_test, shape, classes, scale, shift, unit)


def _same_length(path: Path, x: Array, y: Array) -> None:
    if x.ndim < 1 or y.ndim < 1 or len(x) != len(y) or y.size != len(y) or len(x) < 2:
        raise DataError(f"{path}: x of shape {x.shape} and y of shape {y.shape} do not belong together; wanted (n, ...) and (n,)")


def _parse(path: Path, file: TextIO, label: str | None, ignore: Sequence[str]) -> tuple[list[str], Array]:
    """The kept columns' names and the table as (rows, kept) f64."""
    lines = csv.reader(file)
    header = [name.strip() for name in next(lines, [])]
    unknown = [name for name in (label, *ignore) if name not in header and name is not None]
    if label is None or unknown:
        wanted = f"has no column {unknown[0]!r}" if unknown else "needs --label COLUMN, the column to predict"
        raise DataError(f"{path} {wanted}; its columns are {', '.join(header) or '(none: the file is empty)'}")
    kept = [i for i, name in enumerate(header) if name not in ignore or name == label]
    values = array("d")
    for row in lines:
        if not row:
            continue
        if len(row) != len(header):
            raise DataError(f"{path} line {lines.line_num}: {len(row)} cells where the header has {len(header)}")
        try:
            values.extend([float(row[i]) for i in kept])
        except ValueError:
            bad = next(i for i in kept if not _is_number(row[i]))
            raise DataError(
                f"{path} line {lines.line_num}, column {header[bad]!r}: {row[bad]!r} is not a number; "
                f"encode or fill the column, or leave it out with --ignore {header[bad]}"
            ) from None
    table = np.frombuffer(values, np.float64).reshape(-1, len(kept))
    if len(table) < 2 or len(kept) < 2:
        raise DataError(
            f"{path} has {len(table)} rows and {len(kept)} columns; wanted two rows and a feature beside the label at least"
        )
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise DataError(
            f"{path} data row {row + 1}, column {header[kept[column]]!r}: {table[row, column]} is not a finite number"
        )
    return [header[i] for i in kept], table


def _standardised(name: str, x: Array, y: Array, features: list[str]) -> Dataset:
    train, test = hold_out(len(x))
    mean, deviation = x[train].mean(0), x[train].std(0)
    z = ((x - mean) / np.where(deviation > 0, deviation, 1.0)).astype(np.float32)
    y_train, y_test, classes, unit = _targets(y[train], y[test])
    return Dataset(
        name,
        z[train],
        y_train,
        z[test],
        y_test,
        (x.shape[1],),
        classes,
        target_unit=unit,
        warnings=_leaks(z, y, features),
    )


def _targets(train: Array, test: Array) -> tuple[Array, Array, int, float]:
    """Labels 0..classes-1, or standardised targets with classes = 0 and the deviation that is their unit."""
    both = np.concatenate([train, test])
    values = np.unique(both)
    if len(values) <= MOST_CLASSES and (values == np.round(values)).all():
        return np.searchsorted(values, train), np.searchsorted(values, test), max(2, len(values)), 1.0
    unit = float(train.std()) or 1.0
    return ((train - train.mean()) / unit)[:, None], ((test - train.mean()) / unit)[:, None], 0, unit


def _leaks(z: Array, y: Array, features: list[str]) -> tuple[str, ...]:
    """Warn of columns that are the label in disguise: the model would look brilliant and be useless."""
    centred = y - y.mean()
    scale = np.sqrt((centred**2).sum() * (z.astype(np.float64) ** 2).sum(0))
    correlation = np.abs(centred @ z) / np.where(scale > 0, scale, 1.0)
    return tuple(
        f"column {features[i]!r} determines the label (correlation {correlation[i]:.4f}); "
        f"if it is the label in disguise, leave it out with --ignore '{features[i]}'"
        for i in np.flatnonzero(correlation > 0.9999)
    )


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if len(members) != 1:
                raise DataError(f"{path} holds {len(members)} files; wanted one CSV")
            with archive.open(members[0]) as raw:
                yield io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
    else:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
