"""Opening data files for reading: only regular files, compressed or not, and never more content than memory can take."""

from __future__ import annotations

import importlib
import io
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from hpcai.data.memory import available
from hpcai.errors import DataError

RATIO = 200
"""A compressed file may expand to RATIO times its size, or to FREE_BYTES if that is more."""

FREE_BYTES = 16 << 20

_FIRST_BYTES = {
    b"\x1f\x8b\x08": "gz",
    **{b"BZh%d%b" % (level, block): "bz2" for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")},
    b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"%PDF-": "PDF",
    b"\x93NUMPY": "npy",
    b"PAR1\x15": "Parquet",
    b"\x89HDF\r\n": "HDF5",
    b"\x89PNG\r\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\xd0\xcf\x11\xe0": "Excel or Word",
    b"\x7fELF": "program",
    b"SQLite format 3\0": "SQLite",
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_READERS = {"gz": "gzip", "bz2": "bz2", "xz": "lzma"}
"""Kinds of compression, and the modules that read them; a Python may lack some."""

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


def regular(path: Path) -> BinaryIO:
    """Open a regular file; refuse anything else, such as a FIFO, without waiting for it. Raises: DataError."""
    try:
        _refuse_others(path, os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _refuse_others(path, os.fstat(descriptor).st_mode)
        except DataError:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb")
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise DataError(f"{str(path)!r} cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def _refuse_others(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'a device')}; wanted a regular file")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Yield the content of a file, to be read once from its beginning; gz, bz2, xz, and zip of one file are decompressed.

    The first bytes of a file tell its kind, not its name. Decompressed content is limited to RATIO times the compressed bytes,
    and to the memory at hand.

    Raises: DataError, also from reads within the `with`: not a regular file, damaged, cut off, encrypted, beyond the limits.
    """
    with regular(path) as file:
        try:
            kind = kind_of(file.read(16))
            file.seek(0)
            if kind == "zip":
                content, begin = _member(path, file)
                yield bounded(path, file, content, begin)
            elif kind in _READERS:
                yield bounded(path, file, _decompressed(path, file, kind))
            else:
                yield file
        except MemoryError:
            raise DataError(f"{path} does not fit into memory, of which {available():,} bytes are at hand") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def read(path: Path, most: int | None = None) -> bytes:
    """Return the whole content of a file, decompressed. most: the limit for its bytes; None: half of the memory at hand.

    Raises: DataError, as `opened` does, and for longer content.
    """
    most, limit = available() // 2 if most is None else most, "memory at hand" if most is None else "what was expected"
    parts, size = [], 0
    with opened(path) as content:
        while part := content.read(1 << 20):
            size += len(part)
            if size > most:
                raise DataError(f"{path} holds more than {most:,} bytes, which is {limit}")
            parts.append(part)
    return b"".join(parts)


def kind_of(first: bytes) -> str:
    """Return the kind of a file by its first 16 bytes; empty if they are unknown.

    >>> kind_of(b"%PDF-1.7"), kind_of(b"a,b,c")
    ('PDF', '')
    """
    return next((kind for begin, kind in _FIRST_BYTES.items() if first.startswith(begin)), "")


def printable(text: str) -> str:
    """Return a text without unprintable characters, for messages that quote files: these may move the cursor, for example."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _decompressed(path: Path, file: BinaryIO, kind: str) -> BinaryIO:
    try:
        return cast(BinaryIO, importlib.import_module(_READERS[kind]).open(file))
    except ImportError:
        raise DataError(f"{path} is {kind}, which this Python was built without; decompress it first") from None


def _member(path: Path, file: BinaryIO) -> tuple[BinaryIO, int]:
    """Return the one file of a zip archive, and the byte where it begins. Files that macOS adds do not count."""
    with damage_named(path):
        archive = zipfile.ZipFile(file)
        members = [one for one in archive.infolist() if not one.is_dir() and not _of_macos(one.filename)]
        if len(members) != 1:
            names = ", ".join(repr(one.filename) for one in members[:3])
            raise DataError(f"{path} holds {len(members)} files{f' ({names}, ...)' if names else ''}; wanted one")
        if members[0].flag_bits & 1:
            raise DataError(f"{path}: {members[0].filename!r} in it is encrypted; extract it and give the file itself")
        try:
            return cast(BinaryIO, archive.open(members[0])), members[0].header_offset
        except (NotImplementedError, RuntimeError) as error:  # RuntimeError: this Python lacks the method
            raise DataError(
                f"{path}: {members[0].filename!r} in it is compressed in an unknown way ({error}); extract it and give that"
            ) from None


def _of_macos(name: str) -> bool:
    parts = name.split("/")
    return parts[0] == "__MACOSX" or parts[-1] == ".DS_Store"


@contextmanager
def damage_named(path: Path | str) -> Iterator[None]:
    """Turn errors within the `with` into DataError: for damaged data decompressors raise about anything, also struct.error,
    ValueError and UnicodeDecodeError.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        said = printable(" ".join(str(error).split())[:100]) or type(error).__name__
        raise DataError(f"{path} is damaged or truncated ({said}); get the file again") from None


def bounded(path: Path, file: BinaryIO, content: BinaryIO, begin: int = 0) -> BinaryIO:
    """Return a reader of `content`, the decompressed bytes of `file` from byte `begin` on, which is limited as in `opened`."""
    return cast(BinaryIO, io.BufferedReader(_Bounded(path, file, content, begin), 1 << 16))


class _Bounded(io.RawIOBase):
    """A decompressed stream that ends with a DataError once too much has come out."""

    def __init__(self, path: Path, file: BinaryIO, content: BinaryIO, begin: int):
        self.path, self.file, self.content, self.begin = path, file, content, begin
        self.size, self.most = 0, available()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        with damage_named(self.path):
            part = self.content.read(len(buffer))
        self.size += len(part)
        if self.size > self.most:
            raise DataError(
                f"{self.path} expands to more than {self.most:,} bytes, the memory at hand; take a part of it, or more memory"
            )
        taken = max(1, self.file.tell() - self.begin)
        if self.size > max(FREE_BYTES, RATIO * taken):
            raise DataError(
                f"{self.path} expands to more than {RATIO} times its size ({self.size:,} bytes from {taken:,} so far); "
                "if that is right, decompress it and give the file itself"
            )
        buffer[: len(part)] = part
        return len(part)
