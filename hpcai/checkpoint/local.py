"""Checkpoints in a folder, on this machine or on a file system that nodes share. Files bypass the page cache where possible."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hpcai.checkpoint.naming import MANIFEST, OURS, in_order, next_previous
from hpcai.xp import Array

ALIGNED, HUGE = 4096, 1 << 21
"""Writes past the page cache have multiples of ALIGNED bytes, from memory at a multiple of it. HUGE: bytes of a huge page."""


class Local:
    """A folder of checkpoints. The files of the checkpoint that was removed last are kept in a hidden folder, and the next
    checkpoint is written over them: for a file system, freeing and finding blocks costs more than writing them.

    The folder may be a link. Within the folder no link is followed, as its target is not ours, and only regular files are opened.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def names(self) -> list[str]:
        """List the names of all checkpoints, oldest first."""
        try:
            return in_order(one.name for one in os.scandir(self.folder) if one.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def path(self, name: str) -> str:
        """Return the checkpoint's path, for messages."""
        return str(self.folder / name)

    def files(self, name: str) -> dict[str, int]:
        """List the checkpoint's files with their sizes in bytes; -1 for anything that is not a regular file."""
        try:
            with _opened(self.folder / name) as folder:
                return {one.name: _regular_size(one.stat(follow_symlinks=False)) for one in os.scandir(folder)}
        except FileNotFoundError:
            return {}

    def read(self, name: str, file: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return a file's bytes from start to stop (None: to its end). Raises: OSError."""
        with _opened(self.folder / name) as folder:
            handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with open(handle, "rb") as opened:
            size = _regular_size(os.fstat(handle))
            if size < 0:
                raise OSError(errno.EINVAL, "it is no regular file", file)
            opened.seek(start)
            return opened.read(max(0, min(size, size if stop is None else stop) - start))

    def write(self, name: str, file: str, content: memoryview) -> None:
        """Write a file of the checkpoint under way, in a hidden folder, and sync it."""
        self._beside(name).mkdir(parents=True, exist_ok=True)
        self._write_over_spare(name, file, content)

    def sizes(self, name: str) -> dict[str, int]:
        """List the files of the checkpoint under way with their sizes in bytes."""
        try:
            return {one.name: one.stat().st_size for one in os.scandir(self._beside(name))}
        except FileNotFoundError:
            return {}

    def commit(self, name: str, manifest: bytes, superseded: Sequence[str] = ()) -> list[str]:
        """Write the manifest, sync, and rename. The same sync of the folder hides superseded checkpoints; returns their names."""
        beside, path = self._beside(name), self.folder / name
        self._write_over_spare(name, MANIFEST, memoryview(manifest))
        _sync_folder(beside)
        replaced = self.folder / f".replaced-{name}" if os.path.lexists(path) else None
        if replaced:
            if not _is_folder(path):
                raise FileExistsError(errno.EEXIST, "something that is not a folder is in the way", str(path))
            _move(path, replaced)
        beside.rename(path)
        gone = []
        for old in superseded:
            with contextlib.suppress(OSError):
                self._drop(old)
                gone.append(old)
        _sync_folder(self.folder)
        if replaced:
            self._delete_replaced(replaced)
        return gone

    def remove(self, name: str) -> None:
        """Hide a checkpoint, and sync that before its files are written over, so that half a checkpoint is never found."""
        self._drop(name)
        _sync_folder(self.folder)

    def set_aside(self, names: list[str]) -> str:
        """Move checkpoints into a new folder previous-N; returns its path. The newest goes first: if the process is killed
        meanwhile, no newer one is found.
        """
        aside = self.folder / next_previous(path.name for path in self.folder.iterdir())
        aside.mkdir()
        for name in reversed(in_order(names)):
            (self.folder / name).rename(aside / name)
        _sync_folder(aside)
        _sync_folder(self.folder)
        return str(aside)

    def discard(self, name: str | None = None) -> None:
        """Delete the files of the unfinished checkpoint `name`. None: delete those of all unfinished checkpoints and the spare
        files, and put a checkpoint back if its replacement was not completed.
        """
        if name is not None:
            _delete(self._beside(name))
            return
        for old in self._left(".replaced-"):
            path = self.folder / old.name.removeprefix(".replaced-")
            if not os.path.lexists(path) and _is_folder(old):
                old.rename(path)
        for old in self._left(".replaced-"):
            self._delete_replaced(old)
        for path in (*self._left(".writing-"), self._spare):
            _delete(path)

    def probe(self) -> None:
        """Create and delete a file, and the folder if there was none. Raises: OSError."""
        fresh = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        trial = self.folder / ".writable"
        with contextlib.suppress(OSError):
            trial.unlink()
        trial.touch(exist_ok=False)
        trial.unlink()
        if fresh:
            self.folder.rmdir()

    def _write_over_spare(self, name: str, file: str, content: memoryview) -> None:
        beside, spare = self._beside(name) / file, self._spare / file
        with contextlib.suppress(OSError):
            about = spare.lstat()
            if stat.S_ISREG(about.st_mode) and about.st_nlink == 1:  # with more links it is somebody's backup too
                spare.rename(beside)
        _write_synced(beside, content)

    def _drop(self, name: str) -> None:
        """Hide a checkpoint among the spare files. If others put files of their own into it, delete ours alone; theirs stay."""
        path, there = self.folder / name, self.files(name)
        ours = [file for file in there if OURS.fullmatch(file)]
        if len(ours) == len(there):
            _move(path, self._spare)
            return
        for file in sorted(ours, key=lambda file: file != MANIFEST):
            (path / file).unlink()

    def _delete_replaced(self, old: Path) -> None:
        """Remove a checkpoint that another one has replaced; files that others put into it move to the new one."""
        path = self.folder / old.name.removeprefix(".replaced-")
        with contextlib.suppress(OSError):
            for one in os.scandir(old) if _is_folder(old) and _is_folder(path) else ():
                if not OURS.fullmatch(one.name) and not os.path.lexists(path / one.name):
                    os.rename(one.path, path / one.name)
        _delete(old)

    def _left(self, prefix: str) -> list[Path]:
        names = in_order(path.name.removeprefix(prefix) for path in self.folder.glob(f"{prefix}*"))
        return [self.folder / f"{prefix}{name}" for name in names]

    @property
    def _spare(self) -> Path:
        return self.folder / ".spare"

    def _beside(self, name: str) -> Path:
        return self.folder / f".writing-{name}"


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Open a folder that is not a link, and yield its descriptor."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _is_folder(path: Path) -> bool:
    """Return whether the path is a folder, and not a link to a folder."""
    return path.is_dir() and not path.is_symlink()


def _regular_size(about: os.stat_result) -> int:
    """Return the bytes of a regular file; -1 for anything else."""
    return about.st_size if stat.S_ISREG(about.st_mode) else -1


def buffer(nbytes: int) -> Array:
    """Return a u8 array of at least `nbytes` that can be written past the page cache: whole pages, huge ones where available,
    since the kernel looks up each page that goes to disk.
    """
    size = max(1, -(-nbytes // HUGE)) * HUGE
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8)


def _write_synced(path: Path, content: memoryview) -> None:
    """Write and sync a file. Whole pages bypass the page cache where the file system allows: a fifth of the processor time, which
    training steps need.
    """
    pages = len(content) // ALIGNED * ALIGNED
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        if os.fstat(handle).st_size > len(content):
            os.ftruncate(handle, len(content))
        done = _written_past_cache(handle, content[:pages]) if pages else 0
        while done < len(content):
            done += os.write(handle, content[done:])
        getattr(os, "fdatasync", os.fsync)(handle)  # a file that is written over changes only its times besides
    finally:
        os.close(handle)


def _written_past_cache(handle: int, content: memoryview) -> int:
    """Return how many bytes could be written past the page cache: 0 if memory or the file system does not allow direct writes."""
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
    """Rename a folder; delete what an earlier process left under the new name."""
    try:
        path.rename(to)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        _delete(to)
        path.rename(to)


def _delete(path: Path) -> None:
    """Delete a folder with its content, or the name of anything else. What cannot be deleted stays."""
    with contextlib.suppress(OSError):
        if _is_folder(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
