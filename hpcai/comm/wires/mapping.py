"""Memory that the processes of a node share: a file in /dev/shm that all of them map.

The file has no name, so that a crash never leaves it behind: rank 0 opens it as a temporary file and the others open it through
rank 0's descriptor in /proc. Ranks that do not see rank 0 there, as in containers of their own, open it by a name, which is
removed once all have opened the file.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Callable

import numpy as np

from hpcai.comm.launch.host import boot_id
from hpcai.comm.wire import Wire
from hpcai.xp import Array

FOLDER = "/dev/shm"


def shared(wire: Wire, bytes_per_rank: int) -> Array | None:
    """Zeroed memory of size * bytes_per_rank bytes that all ranks of `wire` address; None on all if there is none. Collective.

    Each rank reserves its own part, so that it lies near the rank, and a lack of memory shows now, not as a bus error later.
    """
    here = (boot_id(), os.stat(FOLDER).st_ino, os.stat(FOLDER).st_dev) if os.path.isdir(FOLDER) else None
    places = set(wire.exchange(here))
    if None in places or len(places) > 1:
        return None
    for open_it in (_without_name, _with_name):
        handle = open_it(wire)
        try:
            if all(wire.exchange(handle >= 0)):
                return _mapped(wire, handle, bytes_per_rank)
        finally:
            if handle >= 0:
                os.close(handle)
    return None


def _mapped(wire: Wire, handle: int, bytes_per_rank: int) -> Array | None:
    def reserve() -> int:
        os.posix_fallocate(handle, wire.rank * bytes_per_rank, bytes_per_rank)
        return 0

    if any(wire.exchange(_tried(reserve))):
        return None
    mapped = mmap.mmap(handle, wire.size * bytes_per_rank)
    with contextlib.suppress(OSError, AttributeError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8)


def _without_name(wire: Wire) -> int:
    """A descriptor of the same new file on all ranks, or -1 on ranks that cannot open it."""
    handle = _tried(lambda: os.open(FOLDER, os.O_TMPFILE | os.O_RDWR, 0o600)) if wire.rank == 0 else -1
    try:
        pid, number, *file = wire.exchange((os.getpid(), handle, *_file(handle)))[0]
    except BaseException:
        if handle >= 0:
            os.close(handle)
        raise
    if wire.rank == 0 or number < 0:
        return handle
    mine = _tried(lambda: os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR))
    if mine >= 0 and _file(mine) != tuple(file):  # another process's: rank 0 has another /proc
        os.close(mine)
        return -1
    return mine


def _with_name(wire: Wire) -> int:
    """As `_without_name`, by a name, which is removed before this returns."""
    handle, name = -1, ""
    if wire.rank == 0:
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(prefix="hpcai-", dir=FOLDER)
    try:
        name = wire.exchange(name)[0]
        if wire.rank and name:
            handle = _tried(lambda: os.open(name, os.O_RDWR))
        wire.exchange(None)  # all have opened it
    except BaseException:
        if handle >= 0:
            os.close(handle)
        raise
    finally:
        if wire.rank == 0 and name:
            os.unlink(name)
    return handle


def _file(handle: int) -> tuple[int, int]:
    """The device and inode of the file of a descriptor; zeros without one."""
    return (os.fstat(handle).st_dev, os.fstat(handle).st_ino) if handle >= 0 else (0, 0)


def _tried(call: Callable[[], int]) -> int:
    try:
        return call()
    except OSError:
        return -1
