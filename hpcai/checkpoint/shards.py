"""One rank's shard of a checkpoint: runs of its flat arrays, as a safetensors file that is made in memory.

The next checkpoint uses the same memory. Arrays are copied into it once, and its bytes are written to disk unchanged. Each run
has a checksum in the manifest, so that any reader can read any run alone.
"""

from __future__ import annotations

import itertools
import json
from typing import Any, NamedTuple

import numpy as np
import xxhash

from hpcai.checkpoint.local import ALIGNED, buffer
from hpcai.xp import Array

LONGEST_BYTES = 1 << 26
"""Longer runs are cut, since a reader must read a whole run to check a part of it."""

_TYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
}
"""For each dtype its name in safetensors, and the bytes of an element."""


class Run(NamedTuple):
    """Elements of a flat array, from `start`."""

    array: str
    start: int
    values: Array


class Stored(NamedTuple):
    """A run in a shard's file: elements `start` to `stop` of an array, from byte `at` of the file, and their checksum."""

    array: str
    start: int
    stop: int
    dtype: str
    at: int
    checksum: str


def checksum(content: Any) -> str:
    """Return the 128 bits of xxh3, as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(content)


def itemsize(dtype: str) -> int:
    """Return the bytes of an element of this dtype."""
    return _TYPES[dtype][1]


def header(runs: list[Stored]) -> bytes:
    """Return the JSON at the beginning of a file that has these runs one after the other, in this order."""
    made, begin = {}, runs[0].at if runs else 0
    for run in runs:
        kind, nbytes = _TYPES[run.dtype]
        size, at = run.stop - run.start, run.at - begin
        made[f"{run.array}/{run.start}"] = {"dtype": kind, "shape": [size], "data_offsets": [at, at + size * nbytes]}
    return json.dumps(made, separators=(",", ":")).encode()


class ShardBuffer:
    """A shard's file in memory."""

    def __init__(self) -> None:
        self._memory = buffer(0)
        self._runs: list[Stored] = []
        self._begin = self._size = 0

    def fill(self, runs: list[Run]) -> None:
        """Make the file from the arrays' present values, which it copies. Memory is reused if it is large enough."""
        runs = sorted((part for run in runs for part in _cut(run)), key=lambda run: -run.values.itemsize)  # aligns all runs
        places = list(itertools.accumulate((run.values.nbytes for run in runs), initial=0))
        at = places.pop()
        stored = [
            Stored(run.array, run.start, run.start + run.values.size, str(run.values.dtype), place, "")
            for run, place in zip(runs, places, strict=True)
        ]
        text = header(stored)
        text += b" " * (-len(text) % 8)
        text += b" " * (-(8 + len(text) + at) % ALIGNED // 8 * 8)  # to whole pages, which bypass the page cache
        self._begin, self._size = 8 + len(text), 8 + len(text) + at
        if self._size > self._memory.size:
            self._memory = buffer(self._size)
        self._memory[: self._begin] = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
        self._runs = [one._replace(at=self._begin + one.at) for one in stored]
        for run, one in zip(runs, self._runs, strict=True):
            self._memory[one.at : one.at + run.values.nbytes].view(run.values.dtype)[:] = run.values

    @property
    def content(self) -> memoryview:
        """The file's bytes."""
        return self._memory.data[: self._size]

    def describe(self) -> dict[str, Any]:
        """Return the shard's entry in the manifest: bytes, the header's length and checksum, and each run with its checksum."""
        stops = [one.at + (one.stop - one.start) * np.dtype(one.dtype).itemsize for one in self._runs]
        runs = zip(self._runs, stops, strict=True)
        return {
            "bytes": self._size,
            "header": [self._begin, checksum(self.content[: self._begin])],
            "runs": [[*one[:5], checksum(self.content[one.at : stop])] for one, stop in runs],
        }


def _cut(run: Run) -> list[Run]:
    """Cut a run into runs of LONGEST_BYTES at most; none if it is empty."""
    step = max(1, LONGEST_BYTES // run.values.itemsize)
    return [Run(run.array, run.start + i, run.values[i : i + step]) for i in range(0, run.values.size, step)]
