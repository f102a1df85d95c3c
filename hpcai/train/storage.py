"""Where checkpoints are kept: a folder of this machine or of a file system that nodes share, or any URL that fsspec knows.

A place holds checkpoints by step, each a few files. It becomes one at a single instant, `commit`: a local folder by its renaming,
elsewhere, where nothing can be renamed, by its manifest, which is written last and deleted first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hpcai.errors import CheckpointError
from hpcai.xp import Array

MANIFEST = "manifest.json"

OURS = re.compile(r"shard-\d{5,}-of-\d{5,}\.safetensors|manifest\.json")
"""The files of a checkpoint: where folders are shared with others, nothing else is deleted."""

ALIGNED, HUGE = 4096, 1 << 21
"""Past the page cache bytes go in multiples of this, from memory at a multiple of it."""

BUCKETS = frozenset(("s3", "gs", "gcs", "abfs", "az", "oci", "oss"))
"""Schemes that know no folders: to make one would be to make a bucket of that name."""


class Place(Protocol):
    """Checkpoints by name, which is `named(step)`. What goes wrong is an OSError."""

    def names(self) -> list[str]:
        """All checkpoints, oldest first."""

    def path(self, name: str) -> str:
        """How people call the checkpoint."""

    def read(self, name: str, file: str, start: int = 0, stop: int | None = None) -> bytes:
        """A file of a checkpoint, or its bytes from start to stop; fewer where it ends earlier."""

    def write(self, name: str, file: str, content: memoryview) -> None:
        """A file of a checkpoint that is not complete yet, durable on return."""

    def sizes(self, name: str) -> dict[str, int]:
        """The files of a checkpoint that is not complete yet, and their bytes."""

    def commit(self, name: str, manifest: bytes) -> None:
        """Make it complete, durable on return. An older one of that name is replaced."""

    def remove(self, name: str) -> None:
        """Delete a checkpoint."""

    def set_aside(self, names: list[str]) -> str:
        """Move checkpoints where `names` has them no more; returns the place where they are then."""

    def discard(self, name: str | None = None) -> None:
        """Delete what was written of a checkpoint that did not become complete, or of all such, and what is kept for the next."""

    def probe(self) -> None:
        """Raise an OSError or CheckpointError if nothing can be written here."""


def place(where: str | Path) -> Place:
    """The place of that name: a URL if it has a scheme, else a folder."""
    return Remote(str(where)) if "://" in str(where) else Local(Path(where))


def split(where: str) -> tuple[str, str]:
    """The place and the name that a path or URL ends with.

    >>> split("s3://bucket/run/step-000000020/")
    ('s3://bucket/run', 'step-000000020')
    """
    head, _, tail = where.rstrip("/").rpartition("/")
    return (head or ("/" if where.startswith("/") else ".")), tail


def named(step: int) -> str:
    """A checkpoint's folder."""
    return f"step-{step:09d}"


def next_previous(names: Iterable[str]) -> str:
    """A name for what is set aside, beside those that are there.

    >>> next_previous(["previous-2", "previous-one", "step-000000003"])
    'previous-3'
    """
    numbers = [int(name[9:]) for name in names if name.startswith("previous-") and name[9:].isdecimal()]
    return f"previous-{max(numbers, default=0) + 1}"


def in_order(names: Iterable[str]) -> list[str]:
    """Those names that are checkpoints', by step.

    >>> in_order(["step-000000020", "step-000000003", "step-1000", ".writing-step-000000030"])
    ['step-000000003', 'step-000000020']
    """
    steps = [
        int(name[5:]) for name in names if name.startswith("step-") and name[5:].isdecimal() and name == named(int(name[5:]))
    ]
    return [named(step) for step in sorted(steps)]


class Local:
    """A folder. The shards of the checkpoint that was removed last are kept out of sight and written over by the next one: to
    free blocks and find others costs a file system more than to write them.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def names(self) -> list[str]:
        """All checkpoints, oldest first."""
        try:
            return in_order(one.name for one in os.scandir(self.folder) if one.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def path(self, name: str) -> str:
        """How people call the checkpoint."""
        return str(self.folder / name)

    def read(self, name: str, file: str, start: int = 0, stop: int | None = None) -> bytes:
        """A file, or its bytes from start to stop."""
        with (self.folder / name / file).open("rb") as opened:
            opened.seek(start)
            return opened.read() if stop is None else opened.read(stop - start)

    def write(self, name: str, file: str, content: memoryview) -> None:
        """A file beside, synced."""
        beside = self._beside(name)
        beside.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            if (self._spare / file).stat().st_nlink == 1:  # else it is somebody's backup too
                (self._spare / file).rename(beside / file)
        _write_synced(beside / file, content)

    def sizes(self, name: str) -> dict[str, int]:
        """What lies beside."""
        try:
            return {one.name: one.stat().st_size for one in os.scandir(self._beside(name))}
        except FileNotFoundError:
            return {}

    def commit(self, name: str, manifest: bytes) -> None:
        """Sync and rename."""
        beside, path = self._beside(name), self.folder / name
        _write_synced(beside / MANIFEST, memoryview(manifest))
        _sync_folder(beside)
        replaced = self.folder / f".replaced-{name}" if path.exists() else None
        if replaced:
            _move(path, replaced)
        beside.rename(path)
        _sync_folder(self.folder)
        if replaced:
            shutil.rmtree(replaced, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Out of sight, for good before it is written over, so that no half of it is found."""
        _move(self.folder / name, self._spare)
        _sync_folder(self.folder)

    def set_aside(self, names: list[str]) -> str:
        """Beside the others, the newest first, so that no newer one is found by a run that is killed meanwhile."""
        aside = self.folder / next_previous(path.name for path in self.folder.iterdir())
        aside.mkdir()
        for name in reversed(in_order(names)):
            (self.folder / name).rename(aside / name)
        _sync_folder(aside)
        _sync_folder(self.folder)
        return str(aside)

    def discard(self, name: str | None = None) -> None:
        """What lies beside. A checkpoint that was to be replaced, and was not, comes back."""
        if name is not None:
            shutil.rmtree(self._beside(name), ignore_errors=True)
            return
        for old in self._left(".replaced-"):
            path = self.folder / old.name.removeprefix(".replaced-")
            if not path.exists():
                old.rename(path)
        for path in (*self._left(".writing-"), *self._left(".replaced-"), self._spare):
            shutil.rmtree(path, ignore_errors=True)

    def probe(self) -> None:
        """Write and delete a file, and the folder if there was none."""
        fresh = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ".writable").touch()
        (self.folder / ".writable").unlink()
        if fresh:
            self.folder.rmdir()

    def _left(self, prefix: str) -> list[Path]:
        names = in_order(path.name.removeprefix(prefix) for path in self.folder.glob(f"{prefix}*"))
        return [self.folder / f"{prefix}{name}" for name in names]

    @property
    def _spare(self) -> Path:
        return self.folder / ".spare"

    def _beside(self, name: str) -> Path:
        return self.folder / f".writing-{name}"


class Remote:
    """A URL of any file system that fsspec knows, such as s3://bucket/run (with s3fs; $AWS_ENDPOINT_URL says where S3 is)."""

    def __init__(self, url: str):
        """Raises: CheckpointError where fsspec, or what it needs for that scheme, is not installed."""
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise CheckpointError(f"{url} needs fsspec: pip install 'hpcai[s3]'") from None
        self.url = url.rstrip("/")
        try:
            self.files, self.root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise CheckpointError(f"{url} cannot be opened: {error}; for s3:// pip install 'hpcai[s3]'") from None

    def names(self) -> list[str]:
        """Those that have a manifest."""
        return [name for name in in_order(self._within(self.root)) if self._do("exists", self._at(name, MANIFEST))]

    def path(self, name: str) -> str:
        """How people call the checkpoint."""
        return f"{self.url}/{name}"

    def read(self, name: str, file: str, start: int = 0, stop: int | None = None) -> bytes:
        """A file, or its bytes from start to stop."""
        return self._do("cat_file", self._at(name, file), start=start or None, end=stop)

    def write(self, name: str, file: str, content: memoryview) -> None:
        """An object."""
        self._delete(name, MANIFEST)  # of an earlier one of that name
        self._make_folder(self._at(name))
        self._do("pipe_file", self._at(name, file), bytes(content))

    def sizes(self, name: str) -> dict[str, int]:
        """The objects."""
        return {file: self._do("size", self._at(name, file)) for file in self._within(self._at(name))}

    def commit(self, name: str, manifest: bytes) -> None:
        """The manifest makes it complete."""
        self._do("pipe_file", self._at(name, MANIFEST), manifest)

    def remove(self, name: str) -> None:
        """The manifest first."""
        self._delete(name, MANIFEST)
        self.discard(name)

    def set_aside(self, names: list[str]) -> str:
        """Copies, then the originals are deleted, the newest first; others' objects stay where they are."""
        aside = next_previous(self._within(self.root))
        for name in reversed(in_order(names)):
            self._make_folder(self._at(f"{aside}/{name}"))
            for file in sorted(self._ours(name), key=lambda file: file == MANIFEST):
                self._do("copy", self._at(name, file), self._at(f"{aside}/{name}", file))
            self.remove(name)
        return self.path(aside)

    def discard(self, name: str | None = None) -> None:
        """Shards that have no manifest. Whatever else there is may be somebody's, and stays."""
        for one in in_order(self._within(self.root)) if name is None else [name]:
            shards = self._ours(one)
            if shards and MANIFEST not in shards:
                self._do("rm", [self._at(one, file) for file in shards])
                if self._has_folders() and not self._within(self._at(one)):
                    self._do("rmdir", self._at(one))

    def probe(self) -> None:
        """Write and delete an object."""
        self._make_folder(self.root)
        self._do("pipe_file", f"{self.root}/.writable", b"\n")
        self._do("rm_file", f"{self.root}/.writable")

    def _at(self, name: str, file: str = "") -> str:
        return f"{self.root}/{name}/{file}".rstrip("/")

    def _within(self, folder: str) -> list[str]:
        """The names of what a folder has."""
        try:
            found = self._do("ls", folder, detail=False)
        except FileNotFoundError:
            return []
        return [path.rstrip("/").rpartition("/")[2] for path in found]

    def _ours(self, name: str) -> list[str]:
        """The files of a checkpoint that are ours."""
        return [file for file in self._within(self._at(name)) if OURS.fullmatch(file)]

    def _has_folders(self) -> bool:
        protocols = self.files.protocol
        return BUCKETS.isdisjoint([protocols] if isinstance(protocols, str) else protocols)

    def _make_folder(self, folder: str) -> None:
        if self._has_folders():
            self._do("makedirs", folder, exist_ok=True)

    def _delete(self, name: str, file: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._do("exists", self._at(name, file)):
                self._do("rm_file", self._at(name, file))

    def _do(self, verb: str, *arguments: Any, **more: Any) -> Any:
        """A call to the file system, which has seen nothing before; whatever it raises is an OSError."""
        self.files.invalidate_cache()
        try:
            return getattr(self.files, verb)(*arguments, **more)
        except OSError:
            raise
        except Exception as error:  # of the many libraries behind fsspec
            raise OSError(f"{self.url}: {type(error).__name__}: {error}") from error


def buffer(nbytes: int) -> Array:
    """Bytes that can be written past the page cache: at a page's start, and whole pages. Huge ones where there are: the kernel
    looks up each page that goes to disk.
    """
    size = max(1, -(-nbytes // HUGE)) * HUGE
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8)


def _write_synced(path: Path, content: memoryview) -> None:
    """Whole pages go past the page cache where the file system lets them: a fifth of the processor's time, which steps want."""
    pages = len(content) // ALIGNED * ALIGNED
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.ftruncate(handle, min(len(content), os.fstat(handle).st_size))
        done = _written_past_cache(handle, content[:pages]) if pages else 0
        while done < len(content):
            done += os.write(handle, content[done:])
        os.fsync(handle)
    finally:
        os.close(handle)


def _written_past_cache(handle: int, content: memoryview) -> int:
    """How many bytes could be written so: none where memory or file system do not allow it."""
    direct, done = getattr(os, "O_DIRECT", 0), 0
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, direct)
        while done < len(content) and done % ALIGNED == 0:
            done += os.write(handle, content[done:])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    fcntl.fcntl(handle, fcntl.F_SETFL, 0)
    return done


def _move(path: Path, to: Path) -> None:
    """Rename a folder, in place of what an earlier process left under that name."""
    try:
        path.rename(to)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        shutil.rmtree(to)
        path.rename(to)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
