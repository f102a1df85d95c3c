"""Features from a table's columns: numbers standardised, categories one-hot, and the encoding that predictions need."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from hpcai.data.cells import Cells
from hpcai.data.memory import available
from hpcai.data.numerals import is_number
from hpcai.data.opening import printable
from hpcai.data.scaling import FAR, measure
from hpcai.data.targets import shown
from hpcai.errors import DataError
from hpcai.xp import Array

MOST_DESCRIBED = 20_000
"""A checkpoint's manifest describes columns if there are at most this many; it does not describe those of a wider table."""

UNUSUAL = 1e4
"""A number more deviations than this from the mean gives a warning; 16-bit floats end at 65504."""

_DESCRIBED_BYTES = 4 << 20
"""The limit for the bytes of a description in a manifest."""

_GROUP = 1 << 20
"""How many numbers are scaled at a time."""


class Features(NamedTuple):
    """train, test: (rows, features) f32; encoding: a JSON-able dict for each column, in the order of the features."""

    train: Array
    test: Array
    names: list[str]
    encoding: list[dict[str, Any]] | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def features(cells: Cells, numbers: list[str], texts: list[str], train: Array, test: Array) -> Features:
    """Return features: columns of numbers, scaled by the training rows alone, then a column for each category of training rows.

    numbers, texts: the columns' names; train, test: the rows' indices.
    Raises: DataError if features do not fit into memory, or if a number of a test row is beyond any scale.
    """
    numeric, coded = cells.numbers[:, : len(numbers)], cells.codes[: len(texts)]  # without the label, which comes last
    kept = [in_order(values, np.unique(codes[train]).tolist()) for codes, values in zip(coded, cells.values, strict=False)]
    width = len(numbers) + sum(map(len, kept))
    if 4 * cells.rows * width > available():
        raise DataError(f"one-hot, the table has {width:,} features in each of {cells.rows:,} rows, more than fit into memory")
    x = [np.zeros((len(rows), width), np.float32) for rows in (train, test)]
    encoding, constant, unusual = _scale_into(x, numeric, numbers, train, test)
    names, notes, warnings = list(numbers), [], [*_said_of_constants(constant), *unusual]
    for name, codes, values, seen in zip(texts, coded, cells.values, kept, strict=False):
        place = np.full(len(values), -1)
        place[seen] = len(names) + np.arange(len(seen))
        for part, rows in zip(x, (train, test), strict=True):
            column = place[codes[rows]]
            part[np.flatnonzero(column >= 0), column[column >= 0]] = 1
        found = [values[code] for code in seen]
        names += [f"{name}={value}" for value in found]
        encoding.append({"name": name, "kind": "categories", "values": found})
        notes.append(f"column {name!r}: one-hot, {len(found)} categories ({shown(found)})")
        if unseen := [values[code] for code in np.setdiff1d(codes[test], seen)]:
            warnings.append(f"column {name!r}: only rows for testing have {shown(unseen)}, which is none of its categories")
    told = encoding if len(numbers) + len(texts) <= MOST_DESCRIBED else None
    return Features(x[0], x[1], names, told, tuple(notes), tuple(warnings))


def described(columns: list[dict[str, Any]] | None, label: dict[str, Any]) -> dict[str, Any]:
    """Return the encoding that predictions need, with None in place of a part that is too long for a manifest."""
    found: dict[str, Any] = {"columns": columns, "label": label}
    for part in ("columns", "label"):
        if len(json.dumps(found)) > _DESCRIBED_BYTES:
            found[part] = None
    return found


def leaks(x: Array, y: Array, names: list[str]) -> tuple[str, ...]:
    """Return warnings of features that determine the label: a model would look perfect and be useless. y: (n,) numbers."""
    target, said = y - y.mean(), []
    for part in _groups(x):
        z = x[:, part].astype(np.float64)
        z -= z.mean(0)
        scale = np.sqrt((target**2).sum() * (z**2).sum(0))
        correlation = np.abs(target @ z) / np.where(scale > 0, scale, 1.0)
        said += [
            f"column {names[part.start + i]!r} determines the label (correlation {correlation[i]:.4f}); if it is the label in "
            f"disguise, leave it out with --ignore-columns '{printable(names[part.start + i].split('=')[0])}'"
            for i in np.flatnonzero(correlation > 0.9999)
        ]
    return tuple(said[:10])


def _scale_into(
    x: list[Array], cells: Array, names: list[str], train: Array, test: Array
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Fill the columns of numbers of `x` (train, test); returns each column's scaling, constant columns' names, and warnings."""
    encoding: list[dict[str, Any]] = []
    constant: list[str] = []
    unusual: list[str] = []
    for part in _groups(cells):
        given = cells[train, part]
        scale = measure(given)
        x[0][:, part] = scale.apply(given)
        given = cells[test, part]
        z = scale.apply(given)
        size = np.abs(z).max(0, initial=0)
        for i in np.flatnonzero(~(size < UNUSUAL)):
            row = int(np.argmax(np.abs(z[:, i])))
            said = f"column {names[part.start + i]!r}: {given[row, i]} in data row {test[row] + 1}, which is for testing, is "
            if not size[i] < FAR:
                raise DataError(f"{said}beyond any scale of the training rows; correct it, or leave its row out")
            unusual.append(f"{said}{size[i]:.2g} deviations from the training rows' mean")
        x[1][:, part] = z
        constant += [names[part.start + i] for i in np.flatnonzero(scale.deviation == 0)]
        encoding += [
            {"name": names[part.start + i], "kind": "number"} | scale.described(i)
            for i in range(part.stop - part.start if len(names) <= MOST_DESCRIBED else 0)
        ]
    return encoding, constant, unusual[:10]


def _said_of_constants(names: list[str]) -> list[str]:
    return [f"one value in all rows for training, and so left at 0: column {shown(names)}"] if names else []


def in_order(values: list[str], codes: Iterable[int]) -> Array:
    """Return the codes in the order of their values: by number if all values are numbers, else by text."""
    given = list(codes)
    numeric = all(is_number(values[code]) for code in given)
    return np.array(sorted(given, key=lambda code: (float(values[code]) if numeric else 0, values[code])), np.int64)


def _groups(x: Array) -> list[slice]:
    """Return the columns in groups: large enough to be worth a pass, small enough to take little memory."""
    step = max(1, _GROUP // max(1, len(x)))
    return [slice(begin, min(begin + step, x.shape[1])) for begin in range(0, x.shape[1], step)]
