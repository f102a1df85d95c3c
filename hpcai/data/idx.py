"""MNIST's IDX files, gz or raw: finds the files, checks them against the published content, and reads them."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpcai.data import opening
from hpcai.data.dataset import Dataset
from hpcai.data.places import first_there
from hpcai.errors import DataError
from hpcai.xp import Array

DEBIAN = Path("/usr/share/datasets")

MOST_BYTES = 64 << 20
"""No published file is longer than 48 MB."""

# SHA-256 of the raw content, since distributors compress it anew.
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SHA256 = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion-mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
_HOW = {
    "fashion-mnist": "On Debian and Ubuntu `apt-get install dataset-fashion-mnist` puts it there; elsewhere copy the four files "
    "of github.com/zalandoresearch/fashion-mnist into a folder and name it with --data-dir",
    "mnist": "Copy its four files (train-images-idx3-ubyte.gz and so on) into a folder and name that with --data-dir",
}


def load(name: str, paths: Sequence[Path]) -> Dataset:
    """Return the data set `name` ("mnist" or "fashion-mnist") from its four files, with pixels scaled to [-1, 1].

    Raises: DataError if a file is truncated, or not the published one.
    """
    x_train, y_train, x_test, y_test = (_read(path, digest) for path, digest in zip(paths, SHA256[name], strict=True))
    shape = x_train.shape[1:]
    rows = (
        x_train.reshape(len(x_train), -1),
        y_train.astype(np.int64),
        x_test.reshape(len(x_test), -1),
        y_test.astype(np.int64),
    )
    return Dataset(name, *rows, shape=shape, classes=10, scale=2 / 255, shift=-1.0)


def files(name: str, folder: Path | None) -> list[Path]:
    """Find the four files of `name`, in `folder` or /usr/share/datasets. Raises: DataError, which says how to get them."""
    return [_find(name, file, folder) for file in _FILES]


def _find(name: str, file: str, folder: Path | None) -> Path:
    roots = [*([folder] if folder else []), DEBIAN]
    found = first_there([place / form for root in roots for place in (root / name, root) for form in (f"{file}.gz", file)])
    if found is None:
        looked = ", ".join(str(root) for root in [*roots[:-1], DEBIAN / name])
        raise DataError(f"data set {name} was not found: no {file}[.gz] in {looked}. {_HOW[name]}")
    return found


def _read(path: Path, digest: str) -> Array:
    raw = opening.read(path, MOST_BYTES)
    if (found := hashlib.sha256(raw).hexdigest()) != digest:
        raise DataError(f"{path} {_unlike(raw, found)}")
    shape = _shape(raw)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _shape(raw: bytes) -> tuple[int, ...]:
    """Return the shape in an IDX file's header; empty if it has none."""
    dims = raw[3] if len(raw) > 4 and raw[:3] == b"\0\0\x08" else 0
    return struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims]) if len(raw) >= 4 + 4 * dims else ()


def _unlike(raw: bytes, digest: str) -> str:
    """Return why a file is not the published one, as the end of a message."""
    for name, digests in SHA256.items():
        if digest in digests:
            return f"has the content of {name}'s {_FILES[digests.index(digest)]}; give each file its own name and folder"
    shape = _shape(raw)
    if not shape:
        return f"is not an IDX file of bytes: it starts with {raw[:4].hex(' ') or 'nothing'}, wanted 00 00 08 and a count of dims"
    wanted = 4 + 4 * len(shape) + math.prod(shape)
    if len(raw) != wanted:
        return f"is truncated or too long: its header promises {wanted:,} bytes, it has {len(raw):,}; get the file again"
    return "differs from the published file (in its SHA-256); get the file again, or use npz: for data of your own"
