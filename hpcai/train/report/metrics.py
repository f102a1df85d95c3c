"""The metrics of a run: a file of JSON lines, one a step."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

from hpcai.train import strict

FLUSH_S = 1.0

MOST_WAITING = 1 << 26
"""Bytes of metrics that wait for a disk; later lines are left out."""

KEPT_STEPS = 8192
"""So many of the last steps every rank keeps in memory: more than rank 0 makes between two flushes. If it dies the next rank 0
writes what is lacking in the file.
"""

TAIL_BYTES = 1 << 16
"""How much of a file's end is looked at first for its last step."""


class Metrics:
    """The metrics file. When a run resumes, lines of later steps are cut off first; then the missing ones of `owed`, records of
    the last steps until then, are written.

    A disk that is full, or a file that cannot be written for another reason, costs one warning: lines wait, and are tried again.
    """

    def __init__(self, path: Path, after_step: int, owed: Iterable[dict[str, Any]] = ()):
        self.path, self.after_step, self._owed = path, after_step, list(owed)
        self.flushed = perf_counter()
        self._file: BinaryIO | None = None
        self._waiting = bytearray()
        self._warned = False

    def open(self) -> None:
        """Raises: OSError if there can be no such file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept, last = _kept(self.path, self.after_step) if self.after_step and self.path.is_file() else (0, 0)
        if kept:
            os.truncate(self.path, kept)
        self._file = self.path.open("ab" if kept else "wb", buffering=0)
        self._waiting[:0] = b"".join(_line(record) for record in self._owed if record["step"] > last)
        self._owed.clear()

    def write(self, record: dict[str, Any]) -> None:
        """Add one line; they reach the disk within a second."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting += _line(record)
        if perf_counter() - self.flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Hand all lines to the operating system, as far as it takes them."""
        self.flushed = perf_counter()
        try:
            if self._file is None:
                self.open()
            assert self._file is not None
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
        except OSError as error:
            if not self._warned:
                said = f"{self.path} cannot be written: {error.strerror or error}; the run goes on, and its lines wait"
                print(f"hpcai: warning: {said}", file=sys.stderr, flush=True)
            self._warned = True

    def close(self) -> None:
        """Flush and close. May be called again."""
        self.flush()
        self._waiting.clear()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def _line(record: dict[str, Any]) -> bytes:
    return strict.dumps(record).encode() + b"\n"


def _kept(path: Path, after_step: int) -> tuple[int, int]:
    """Return the bytes of a metrics file up to its last whole line of a step not beyond that one, and this step ((0, 0) if there
    is none). The search begins at the end, as the file of a long run is long.
    """
    with path.open("rb") as file:
        size, tail = file.seek(0, os.SEEK_END), TAIL_BYTES
        while True:
            begin, end = file.seek(max(0, size - tail)), size
            lines_there = file.read(size - begin).splitlines(keepends=True)
            for line in reversed(lines_there[1 if begin else 0 :]):  # the first may be cut
                step = _step(line) if line.endswith(b"\n") else None
                if step is not None and step <= after_step:
                    return end, step
                end -= len(line)
            if not begin:
                return 0, 0
            tail *= 4


def _step(line: bytes) -> int | None:
    """The step of a line of metrics; None if it is not whole."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return None


def lines(path: Path) -> list[str]:
    """The whole lines of a metrics file; a last one cut short by a crash is left out."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [line for line in file if line.endswith("}\n")]
