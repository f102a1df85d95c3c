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
    """What is wanted of a source: columns of tables, the length of a text's samples, whether labels are classes."""

    label: str | None = None
    ignore: Sequence[str] = ()
    context: int = 128
    categorical: Sequence[str] = ()
    task: Task | None = None
    validation: Validation | None = None


class Source(NamedTuple):
    """A row. files(spec, folder): find the files of a data set, without reading them; load(spec, files, asked): the data set."""

    about: str
    files: Callable[[str, Path | None], list[Path]]
    load: Callable[[str, list[Path], Asked], Dataset]


def _one_file(spec: str, folder: Path | None) -> list[Path]:
    """The file that stands behind the kind, as it is or below the folder."""
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
"""Name -> row; a name with a colon wants a path behind it."""

NAMES = tuple(SOURCES)
_KINDS = tuple(name.partition(":")[0] for name in NAMES)


def variable() -> tuple[str | None, Path | None]:
    """Return the meaning of $HPCAI_DATA: (the data set that it names, None), or (None, the folder of data files that it is).

    A name of a data set comes first, so a folder called mnist is written ./mnist. What is neither is taken for a name.
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
    """Load what `spec` names: digits (embedded), fashion-mnist or mnist (see idx.py), csv:PATH (see table.py), npz:PATH
    (see npz.py) or text:PATH (see text.py), of which a sample is `context` bytes.

    Files are looked for in `folder`, else in the folder that is $HPCAI_DATA. validation: what is held out of the training
    samples.

    Raises: UsageError for an unknown name, DataError for data that is absent or damaged.
    """
    found = files(spec, folder)
    made = _named(spec).load(spec, found, Asked(label, ignore, context, categorical, task, validation))
    return split(made, validation)


def _named(spec: str) -> Source:
    """The row of a data set. Raises: UsageError for an unknown name."""
    kind, colon, path = spec.partition(":")
    name = f"{kind}:PATH" if colon and path else spec
    if name in SOURCES:
        return SOURCES[name]
    said = f" (is {whole} meant?)" if (whole := with_kind(spec)) else meant(kind, _KINDS)
    for one, full in zip(_KINDS, NAMES, strict=True):
        said = said.replace(f"is {one} meant", f"is {full} meant")
    raise UsageError(f"unknown data set {spec!r}{said}; there are {', '.join(NAMES)}")


def files(spec: str, folder: Path | None = None) -> list[Path]:
    """The files that `load` would read for `spec`, found but not read; none for digits.

    Raises: UsageError for an unknown name, DataError for files that are absent.
    """
    row = _named(spec)
    return row.files(spec, expanded(folder) if folder else variable()[1])


def with_kind(spec: str, kind: str = "") -> str:
    """Return the path with its kind in front, such as csv:PATH, by its ending or else this kind if there is such a file. Empty if
    no such path exists.

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
    """The UCI handwritten digits embedded in the package: 1,797 images of 8x8 pixels from 0 to 16 (CC BY 4.0, see
    digits.LICENSE), scaled to [-1, 1]. Every fifth image is for testing, so that all writers are on both sides.

    >>> digits().x_train.shape, digits().x_test.shape
    ((1438, 64), (359, 64))
    """
    raw = gzip.decompress(resources.files("hpcai.data").joinpath("digits.csv.gz").read_bytes())
    cells = np.loadtxt(raw.decode().splitlines(), delimiter=",", dtype=np.uint8)
    x, y, test = np.ascontiguousarray(cells[:, :64]), cells[:, 64].astype(np.int64), np.arange(len(cells)) % 5 == 4
    return Dataset("digits", x[~test], y[~test], x[test], y[test], shape=(8, 8), classes=10, scale=1 / 8, shift=-1.0)
