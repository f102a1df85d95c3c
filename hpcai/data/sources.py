"""The data sets that `--data` can name."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcai.data import idx, npz, table, text
from hpcai.data.dataset import Dataset
from hpcai.data.places import expanded, first_there
from hpcai.data.targets import Task
from hpcai.data.validation import Validation, split
from hpcai.errors import DataError, UsageError, meant

_ENDINGS = {".csv": "csv", ".tsv": "csv", ".tab": "csv", ".npz": "npz", ".txt": "text", ".md": "text"}


class Asked(NamedTuple):
    """The options of a source: columns of tables, the bytes of a text's samples, whether labels are classes, validation."""

    label: str | None = None
    ignore: Sequence[str] = ()
    context: int = 128
    categorical: Sequence[str] = ()
    task: Task | None = None
    validation: Validation | None = None


class Source(NamedTuple):
    """A row of SOURCES. files(spec, folder) finds a data set's files, unread; load(spec, files, asked) returns the data set."""

    about: str
    files: Callable[[str, Path | None], list[Path]]
    load: Callable[[str, list[Path], Asked], Dataset]


def _one_file(spec: str, folder: Path | None) -> list[Path]:
    """Return the file that `spec` names after its kind: at this path, or below the folder. Raises: DataError if it is absent."""
    place = expanded(Path(spec.partition(":")[2]))
    places = [place] if place.is_absolute() or folder is None else [place, folder / place]
    if found := first_there(places):
        return [found]
    raise DataError(f"{spec}: there is no file {' or '.join(str(place) for place in places)}")


def _table(spec: str, found: list[Path], asked: Asked) -> Dataset:
    return table.load(found[0], asked.label, asked.ignore, asked.categorical, asked.task, asked.validation)


SOURCES = {
    "digits": Source("8x8 digits, in the package", lambda spec, folder: [], lambda spec, found, asked: digits()),
    "fashion-mnist": Source("28x28 clothes", idx.files, lambda spec, found, asked: idx.load(spec, found)),
    "mnist": Source("28x28 digits", idx.files, lambda spec, found, asked: idx.load(spec, found)),
    "csv:PATH": Source("a table, also .gz, with commas, semicolons or tabs", _one_file, _table),
    "npz:PATH": Source("arrays of numpy", _one_file, lambda spec, found, asked: npz.load(found[0], asked.task, asked.validation)),
    "text:PATH": Source("text, byte by byte", _one_file, lambda spec, found, asked: text.load(found[0], asked.context)),
}
"""Rows by name. In a name with a colon a path takes the place of PATH."""

NAMES = tuple(SOURCES)
_KINDS = tuple(name.partition(":")[0] for name in NAMES)


def variable() -> tuple[str | None, Path | None]:
    """Return the meaning of $HPCAI_DATA: (the name of a data set, None), or (None, the folder of data files).

    Names of data sets come first, so a folder called mnist is written ./mnist. A value that is neither is taken for a name.
    Raises: UsageError for a path that is not a folder.
    """
    value = os.environ.get("HPCAI_DATA", "")
    is_name = value in NAMES or value.lower().startswith(tuple(f"{kind}:" for kind in _KINDS))
    is_folder = not is_name and ("/" in value or os.path.isdir(value))
    if is_folder and not os.path.isdir(os.path.expanduser(value)):
        raise UsageError(f"$HPCAI_DATA is {value!r}, which is no folder; wanted a folder, or a data set as in csv:{value}")
    return (None if is_folder else value or None), (Path(value) if is_folder else None)


def load(
    spec: str,
    folder: Path | None = None,
    label: str | None = None,
    ignore: Sequence[str] = (),
    context: int = 128,
    categorical: Sequence[str] = (),
    task: Task | None = None,
    validation: Validation | None = None,
) -> Dataset:
    """Load the data set `spec`: digits (embedded), fashion-mnist or mnist (see idx.py), csv:PATH (see table.py), npz:PATH
    (see npz.py), or text:PATH (see text.py), whose samples have `context` bytes.

    Files are searched for in `folder`, else in the folder $HPCAI_DATA. validation: the share of the training samples to hold
    out.

    Raises: UsageError for an unknown name, DataError for data that is absent or damaged.
    """
    found = files(spec, folder)
    made = _named(spec).load(spec, found, Asked(label, ignore, context, categorical, task, validation))
    return split(made, validation)


def _named(spec: str) -> Source:
    """Return the row of a data set. Raises: UsageError for an unknown name."""
    kind, colon, path = spec.partition(":")
    name = f"{kind}:PATH" if colon and path else spec
    if name in SOURCES:
        return SOURCES[name]
    said = f" (is {whole} meant?)" if (whole := with_kind(spec)) else meant(kind, _KINDS)
    for one, full in zip(_KINDS, NAMES, strict=True):
        said = said.replace(f"is {one} meant", f"is {full} meant")
    raise UsageError(f"unknown data set {spec!r}{said}; there are {', '.join(NAMES)}")


def files(spec: str, folder: Path | None = None) -> list[Path]:
    """Return the paths of the files that `load` would read for `spec`; none for digits.

    Raises: UsageError for an unknown name, DataError for files that are absent.
    """
    row = _named(spec)
    return row.files(spec, expanded(folder) if folder else variable()[1])


def with_kind(spec: str, kind: str = "") -> str:
    """Return the path with its kind in front, such as csv:PATH: the kind of its ending, else `kind` if there is such a file.
    Empty if neither applies, or if `spec` has a kind already.

    >>> with_kind("table.csv.gz"), with_kind("other"), with_kind("csv:table.csv")
    ('csv:table.csv.gz', '', '')
    """
    if spec in NAMES or ":" in spec:
        return ""
    endings = [ending for ending in Path(spec).suffixes[-2:] if ending in _ENDINGS]
    if endings:
        return f"{_ENDINGS[endings[-1]]}:{spec}"
    return f"{kind}:{spec}" if kind and expanded(Path(spec)).is_file() else ""


def digits() -> Dataset:
    """Return the UCI handwritten digits embedded in the package: 1,797 images of 8x8 pixels from 0 to 16 (CC BY 4.0, see
    digits.LICENSE), scaled to [-1, 1]. Every fifth image is for testing, so that both parts have images of all writers.

    >>> digits().x_train.shape, digits().x_test.shape
    ((1438, 64), (359, 64))
    """
    raw = gzip.decompress(resources.files("hpcai.data").joinpath("digits.csv.gz").read_bytes())
    cells = np.loadtxt(raw.decode().splitlines(), delimiter=",", dtype=np.uint8)
    x, y, test = np.ascontiguousarray(cells[:, :64]), cells[:, 64].astype(np.int64), np.arange(len(cells)) % 5 == 4
    return Dataset("digits", x[~test], y[~test], x[test], y[test], shape=(8, 8), classes=10, scale=1 / 8, shift=-1.0)
