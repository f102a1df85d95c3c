"""MNIST's IDX files, gz or raw: found, checked against the published content, and read."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from hpcai.data.dataset import Dataset
from hpcai.errors import DataError
from hpcai.xp import Array

DEBIAN = Path("/usr/share/datasets")

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


def load(name: str, folder: Path | None) -> Dataset:
    """`name` ("mnist" or "fashion-mnist") from `folder`, $HPCAI_DATA or /usr/share/datasets; pixels scaled to [-1, 1].

    Raises: DataError when the files are absent (says how to get them), truncated, or not the published ones.
    """
    x_train, y_train, x_test, y_test = (
        _read(path, digest) for path, digest in zip(files(name, folder), SHA256[name], strict=True)
    )
    shape = x_train.shape[1:]
    rows = (
        x_train.reshape(len(x_train), -1),
        y_train.astype(np.int64),
        x_test.reshape(len(x_test), -1),
        y_test.astype(np.int64),
    )
    return Dataset(name, *rows, shape=shape, classes=10, scale=2 / 255, shift=-1.0)


def files(name: str, folder: Path | None) -> list[Path]:
    """Where the four files of `name` are. Raises: DataError."""
    return [_find(name, file, folder) for file in _FILES]


def _find(name: str, file: str, folder: Path | None) -> Path:
    given = [folder] if folder else [Path(os.environ["HPCAI_DATA"])] if os.environ.get("HPCAI_DATA") else []
    places = [place for root in [*given, DEBIAN] for place in (root / name, root)]
    for place in places:
        for path in (place / f"{file}.gz", place / file):
            if path.is_file():
                return path
    looked = ", ".join(str(root) for root in [*given, DEBIAN / name])
    raise DataError(f"data set {name} was not found: no {file}[.gz] in {looked}. {_HOW[name]}")


def _read(path: Path, digest: str) -> Array:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or truncated ({error}); get the file again") from None
    dims = raw[3] if len(raw) > 4 and raw[:3] == b"\0\0\x08" else 0
    shape = tuple(np.frombuffer(raw[4 : 4 + 4 * dims], ">i4").tolist()) if len(raw) >= 4 + 4 * dims else ()
    if not dims or len(shape) != dims:
        raise DataError(
            f"{path} is not an IDX file of bytes: it starts with {raw[:4].hex(' ') or 'nothing'}, wanted 00 00 08 and the rank"
        )
    wanted = 4 + 4 * dims + int(np.prod(shape, dtype=np.int64))
    if len(raw) != wanted:
        raise DataError(
            f"{path} is truncated or too long: its header promises {wanted:,} bytes, it has {len(raw):,}; get the file again"
        )
    if hashlib.sha256(raw).hexdigest() != digest:
        raise DataError(
            f"{path} has another content than the published file (SHA-256 differs); get the file again, or use npz: for your own"
        )
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)
