"""npz archives, read without trust: nothing is unpickled, and a header alone cannot make the reader take memory."""

from __future__ import annotations

import os
import zipfile
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from hpcai.data import arrays, opening
from hpcai.data.dataset import Dataset, hold_out
from hpcai.data.memory import available
from hpcai.data.targets import Task
from hpcai.data.validation import Validation
from hpcai.errors import DataError, counted
from hpcai.xp import Array

WHOLE, PARTED = ("x", "y"), ("x_train", "y_train", "x_test", "y_test")

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

_PART_BYTES = 1 << 20

_MOST_NAMES = 10


def load(path: Path, task: Task | None = None, validation: Validation | None = None) -> Dataset:
    """Return the data set of an archive of x (n, ...) and y (n,), of which a fifth is for testing, or of x_train, y_train, x_test
    and y_test (see arrays.py).

    Raises: DataError for a file that is not such an archive, is damaged, or has arrays that do not belong together.
    """
    try:
        found = read(path)
        if "x" in found:
            arrays.check_pair(f"npz:{path}", found, least=10)
            found = _parted(**found)
        return arrays.dataset(f"npz:{path}", found, task, validation)
    except MemoryError:
        raise DataError(f"{path} does not fit into memory, of which {available():,} bytes are at hand") from None


def _parted(x: Array, y: Array) -> dict[str, Array]:
    train, test = hold_out(len(x))
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


def read(path: Path) -> dict[str, Array]:
    """Return the arrays of WHOLE or of PARTED, by name. Raises: DataError."""
    with opening.regular(path) as file:
        kind = opening.kind_of(file.read(16))
        if kind == "npy":
            raise DataError(f"{path} is a single array (npy), not an npz archive; write both: np.savez(file, x=x, y=y)")
        if kind != "zip":
            raise DataError(f"{path} is {f'{kind}, ' if kind else ''}not an npz archive; np.savez(file, x=x, y=y) writes one")
        with opening.damage_named(path):
            archive = zipfile.ZipFile(file)
            wanted = _wanted(path, archive.infolist())
        sizes = sum(info.file_size for info in wanted.values())
        if sizes > available():
            raise DataError(f"{path} holds {sizes:,} bytes of arrays, more than the memory at hand ({available():,} bytes)")
        size = os.fstat(file.fileno()).st_size
        return {name: _array(f"{path}: {name}", archive, info, size) for name, info in wanted.items()}


def _wanted(path: Path, members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return the members to read: x and y, or the four parts. Raises: DataError unless one of both is there, each name once."""
    names = [info.filename.removesuffix(".npy") for info in members]
    sets = [wanted for wanted in (WHOLE, PARTED) if set(wanted) <= set(names)]
    if len(sets) != 1:
        listed = ", ".join(opening.printable(name[:40]) for name in sorted(set(names))[:_MOST_NAMES])
        more = ", ..." if len(set(names)) > _MOST_NAMES else ""
        raise DataError(
            f"{path} has arrays {listed or '(none)'}{more}; wanted x and y, or x_train, y_train, x_test and y_test"
            + (", not both" if sets else "")
        )
    if twice := [name for name in sets[0] if names.count(name) > 1]:
        raise DataError(f"{path} has two arrays of the name {twice[0]}; write it anew with one of them")
    return {name: members[names.index(name)] for name in sets[0]}


def _array(where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, archive_bytes: int) -> Array:
    """Read one array of the archive. `where` names it in errors."""
    if info.flag_bits & 1:
        raise DataError(f"{where} is encrypted; write the archive without a password")
    if info.file_size > max(opening.FREE_BYTES, opening.RATIO * min(info.compress_size, archive_bytes)):
        raise DataError(
            f"{where} expands to {info.file_size:,} bytes, more than {opening.RATIO} times its size; "
            "if that is right, write it with np.savez, uncompressed"
        )
    with opening.damage_named(where):
        try:
            member = archive.open(info)
        except (NotImplementedError, RuntimeError) as error:  # RuntimeError: this Python lacks the method
            raise DataError(f"{where} is compressed in an unknown way ({error}); write it with np.savez") from None
        with member:
            shape, by_columns, dtype = _header(where, member, info.file_size)
            values = _filled(where, member, np.empty(prod(shape), dtype))
        return values.reshape(shape[::-1]).T if by_columns else values.reshape(shape)


def _header(where: str, member: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, order and dtype, after a check that as many bytes follow as they promise. Raises: DataError."""
    first = member.read(len(np.lib.format.MAGIC_PREFIX) + 2)
    if first[:-2] != np.lib.format.MAGIC_PREFIX:
        raise DataError(f"{where} is no array: it starts with {first[:8].hex(' ') or 'nothing'}")
    reader = _HEADERS.get((first[-2], first[-1]))
    if reader is None:
        raise DataError(f"{where} is an array of format {first[-2]}.{first[-1]}; wanted 1.0 or 2.0, as np.savez writes numbers")
    shape, by_columns, dtype = reader(member)
    if dtype.hasobject:
        raise DataError(f"{where} has Python objects, which only pickle could read; write numbers or, of y, texts: y.astype(str)")
    promised, there = prod(shape) * dtype.itemsize, size - member.tell()
    if promised != there or not dtype.itemsize or min(shape, default=0) < 0:
        raise DataError(
            f"{where} promises {str(dtype)[:40]} of shape {str(shape)[:40]}, {counted(promised, 'byte')}, "
            f"and has {there:,}; write it anew"
        )
    return shape, by_columns, dtype


def _filled(where: str, member: IO[bytes], values: Array) -> Array:
    """Fill `values` with the rest of the member, whose checksum is compared at its end; returns `values`. Raises: DataError."""
    content, at = values.view(np.uint8), 0
    while part := member.read(_PART_BYTES):
        content[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part)
    if at < len(content):
        raise DataError(f"{where} ends after {at:,} of {counted(len(content), 'byte')}; get the file again")
    return values
