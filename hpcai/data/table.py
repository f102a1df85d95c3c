"""Tables of numbers: CSV (plain, gz or zip) with named columns."""

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
from hpcai.data.targets import targets
from hpcai.errors import DataError
from hpcai.xp import Array


def load(path: Path, label: str | None, ignore: Sequence[str] = ()) -> Dataset:
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
    t = targets(y[train], y[test])
    return Dataset(
        name,
        z[train],
        t.train,
        z[test],
        t.test,
        (x.shape[1],),
        t.classes,
        target_unit=t.unit,
        warnings=_leaks(z, y, features),
    )


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
