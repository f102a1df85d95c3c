"""A lock that allows one run at a time in a folder. The lock is released if its holder dies, also on NFS, and names its holder.

The lock is a record lock (fcntl) on the file .lock. That file is never deleted: else one run would lock the old file and another
run the new one. A record lock belongs to a process and a file, whatever the folder is called. *Any* close of that file in the
process releases the lock. So this module never opens a held file a second time. URLs are not locked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from hpcai.errors import FolderTaken, UsageError, one_line
from hpcai.train import strict

NAME = ".lock"

PATIENCE_S, PATIENCE_IN_JOB_S = 5.0, 150.0
"""How long a run waits for a folder, since an earlier run may still be writing its last checkpoint. A batch job waits longer:
nobody watches it, and an NFS server releases the lock of a lost node only after 90 s.
"""

SAID_AFTER_S, PAUSE_S, MOST_BYTES = 1.0, 0.1, 4096

TAKEN = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

Key = tuple[int, int]


class _File(NamedTuple):
    handle: int
    pid: int


_held: dict[Key, _File] = {}
_guard = threading.Lock()


class Locks:
    """The locks of one run, taken by its rank 0. token: identifies the run, so that its ranks recognise each other's locks."""

    def __init__(self, folders: Sequence[Path], token: str = ""):
        self.folders, self.token = folders, token or uuid.uuid4().hex
        self._mine: list[Key] = []
        self._released = False

    def take(self, patience_s: float | None = None) -> None:
        """Take all locks. Raises: FolderTaken after `patience_s` seconds; OSError or UsageError if no lock is possible."""
        began, said = time.monotonic(), False
        patience_s = patience() if patience_s is None else patience_s
        while (refusal := self._attempt()) is not None:
            waited = time.monotonic() - began
            if waited >= patience_s:
                raise FolderTaken(refusal)
            if waited >= SAID_AFTER_S and not said:
                said = True
                print(f"hpcai: {refusal}; waiting for it, {patience_s:g} s at most", file=sys.stderr, flush=True)
            time.sleep(PAUSE_S)

    def take_over(self) -> None:
        """Take the locks after the run's former rank 0 has failed. A file server may still hold the lock of a lost node: then a
        thread keeps trying. If no lock is possible, the run continues with a warning.

        Raises: FolderTaken if another run has taken a lock; the new rank 0 then ends this run.
        """
        try:
            self.take(0.0)
        except FolderTaken:
            if any(token_of(folder) not in ("", self.token) for folder in self.folders):
                raise
            threading.Thread(target=self._go_on_trying, daemon=True, name="hpcai lock").start()
        except (OSError, UsageError) as error:
            _warn(f"this run continues without its lock; make sure that no other run uses its folder: {one_line(error)}")

    def close(self) -> None:
        """Release all held locks. May be called again."""
        with _guard:
            self._released = True
            self._drop()

    def _drop(self) -> None:
        while self._mine:
            os.close(_held.pop(self._mine.pop()).handle)

    def _go_on_trying(self) -> None:
        with contextlib.suppress(OSError, UsageError):
            while not self._released and self._attempt() is not None:
                time.sleep(10 * PAUSE_S)

    def _attempt(self) -> str | None:
        """Take all locks and return None; or take none and return the reason."""
        with _guard:
            for folder in self.folders:
                refusal = None if self._released else self._attempt_one(folder)
                if refusal is not None:
                    self._drop()
                    return refusal
        return None

    def _attempt_one(self, folder: Path) -> str | None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UsageError(f"{folder} is a file, but a folder is needed; give another --run-dir or --checkpoint-dir") from None
        except OSError as error:
            raise UsageError(
                f"{folder} cannot be written to: {error.strerror}; give another --run-dir or --checkpoint-dir"
            ) from None
        path = folder / NAME
        with contextlib.suppress(FileNotFoundError):
            key = _key(path.lstat())
            if key in self._mine:  # the same folder under another name
                return None
            if key in _held and _held[key].pid == os.getpid():
                return f"{folder} is in use by another run in this process; give another --run-dir"
        handle = _opened(path)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                said = described(os.pread(handle, MOST_BYTES, 0))
                os.close(handle)
                others = "wait for it, end it, or give another --run-dir or --checkpoint-dir"
                return f"{folder} is in use by another run ({said}); {others}"
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise
            _warn(f"{folder} cannot be locked ({error.strerror or error}): make sure that no other run uses it")
        key = _key(os.fstat(handle))
        _held[key] = _File(handle, os.getpid())
        self._mine.append(key)
        if not path.exists() or _key(path.lstat()) != key:  # the file was deleted meanwhile, so this lock has no effect
            return f"{path} was replaced"
        _write(handle, self.token)
        return None


def patience() -> float:
    """Return how many seconds a run waits for a folder here."""
    return PATIENCE_IN_JOB_S if "SLURM_JOB_ID" in os.environ else PATIENCE_S


def token_of(folder: Path) -> str:
    """Return the token of the run that holds the folder or held it last; empty if none can be read. A process that holds the
    folder must not call this.
    """
    try:
        handle = _opened(folder / NAME, os.O_RDONLY)
    except (OSError, UsageError):
        return ""
    try:
        return str(_read(os.pread(handle, MOST_BYTES, 0)).get("token", ""))
    finally:
        os.close(handle)


def described(text: bytes) -> str:
    """Describe the process that wrote a lock file.

    >>> described(b'{"host": "n1", "pid": 7, "job": "12", "since": "2026-01-01 00:00:00 UTC"}')
    'process 7 on n1, job 12, since 2026-01-01 00:00:00 UTC'
    """
    found = _read(text)
    if not found:
        return "its lock file names no process"
    job = f", job {found['job']}" if found.get("job") else ""
    said = f"process {found.get('pid')} on {found.get('host')}{job}, since {found.get('since')}"
    return "".join(one if one.isprintable() else "?" for one in said)[:300]


def _warn(text: str) -> None:
    print(f"hpcai: warning: {text}", file=sys.stderr, flush=True)


def _opened(path: Path, access: int = os.O_RDWR | os.O_CREAT) -> int:
    handle = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UsageError(f"{path} must be a regular file to serve as a lock; remove it or give another --run-dir")
    return handle


def _write(handle: int, token: str) -> None:
    """Write the identity of the lock's holder into the file, for other runs to read."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID", ""))
    task = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    who = {"host": socket.gethostname(), "pid": os.getpid(), "job": f"{job}_{task}" if task else job, "since": since}
    text = strict.dumps(who | {"token": token}).encode() + b"\n"
    with contextlib.suppress(OSError):  # on a full disk the lock still holds
        os.pwrite(handle, text, 0)
        os.ftruncate(handle, len(text))


def _read(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(found: os.stat_result) -> Key:
    return found.st_dev, found.st_ino
