"""The metrics of a run: a file of JSON lines, one a step."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

from hpcai.train import strict

FLUSH_S = 1.0

MOST_WAITING = 1 << 26
"""Bytes of metrics that wait for a disk; later lines are left out."""


class Metrics:
    """That file. Going on after a checkpoint, lines of later steps are cut off first.

    A disk that is full, or a file that cannot be written for another reason, costs one warning: lines wait, and are tried again.
    """

    def __init__(self, path: Path, after_step: int):
        self.path, self.after_step = path, after_step
        self.flushed = perf_counter()
        self._file: BinaryIO | None = None
        self._waiting = bytearray()
        self._warned = False

    def open(self) -> None:
        """Raises: OSError if there can be no such file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = _length(self.path, self.after_step) if self.after_step and self.path.is_file() else 0
        if kept:
            os.truncate(self.path, kept)
        self._file = self.path.open("ab" if kept else "wb", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        """Add one line; they reach the disk within a second."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting += strict.dumps(record).encode() + b"\n"
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


def _length(path: Path, after_step: int) -> int:
    """How many bytes of a metrics file are whole lines of steps up to that one."""
    length = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"}\n") or json.loads(line)["step"] > after_step:
                break
            length += len(line)
    return length


def lines(path: Path) -> list[str]:
    """The whole lines of a metrics file; a last one cut short by a crash is left out."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [line for line in file if line.endswith("}\n")]
