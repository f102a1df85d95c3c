"""The metrics of a run: a file of JSON lines, one per step."""

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
"""The largest number of bytes of metrics that wait for a disk; later lines are dropped."""

KEPT_STEPS = 8192
"""How many of the last steps every rank keeps in memory, more than a run makes between two flushes. If rank 0 dies, the next
rank 0 writes the lines that are missing in the file.
"""

TAIL_BYTES = 1 << 16
"""How many bytes at a file's end are first searched for its last step."""


class Metrics:
    """The metrics file of a run. When a run resumes, lines of steps after `after_step` are cut off. Then those records of `owed`,
    which hold the last steps up to there, are written that the file lacks.

    If the file cannot be written, as on a full disk, one warning is printed, and the lines wait for the next attempt.
    """

    def __init__(self, path: Path, after_step: int, owed: Iterable[dict[str, Any]] = ()):
        self.path, self.after_step, self._owed = path, after_step, list(owed)
        self.flushed = perf_counter()
        self._file: BinaryIO | None = None
        self._waiting = bytearray()
        self._warned = False

    def open(self) -> None:
        """Open the file, and cut off and add lines as above. Raises: OSError if the file cannot be opened."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept, last = _kept(self.path, self.after_step) if self.after_step and self.path.is_file() else (0, 0)
        if kept:
            os.truncate(self.path, kept)
        self._file = self.path.open("ab" if kept else "wb", buffering=0)
        self._waiting[:0] = b"".join(_line(record) for record in self._owed if record["step"] > last)
        self._owed.clear()

    def write(self, record: dict[str, Any]) -> None:
        """Add one line. Lines are flushed about once a second, when a line is added."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting += _line(record)
        if perf_counter() - self.flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Hand all waiting lines to the operating system, as many as it accepts."""
        self.flushed = perf_counter()
        try:
            if self._file is None:
                self.open()
            assert self._file is not None
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
        except OSError as error:
            if not self._warned:
                said = f"{self.path} cannot be written: {error.strerror or error}; the run continues, and its lines wait"
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
    """Return where the last complete line of a step up to `after_step` ends, in bytes, and its step; (0, 0) if there is none.
    The search begins at the end, since a long run has a long file.
    """
    with path.open("rb") as file:
        size, tail = file.seek(0, os.SEEK_END), TAIL_BYTES
        while True:
            begin, end = file.seek(max(0, size - tail)), size
            lines_there = file.read(size - begin).splitlines(keepends=True)
            for line in reversed(lines_there[1 if begin else 0 :]):  # the first line may be incomplete
                step = _step(line) if line.endswith(b"\n") else None
                if step is not None and step <= after_step:
                    return end, step
                end -= len(line)
            if not begin:
                return 0, 0
            tail *= 4


def _step(line: bytes) -> int | None:
    """Return the step of a line of metrics; None if the line is not valid."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return None


def lines(path: Path) -> list[str]:
    """Return the complete lines of a metrics file. A last line that a crash cut short is left out."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [line for line in file if line.endswith("}\n")]
