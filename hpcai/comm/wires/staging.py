"""The limit up to which ordinary arrays of a node's ranks pass through shared segments, instead of by cross-memory attach.

A copy through a segment that stays in the cache needs no system call; cross-memory attach moves each element once. The faster of
them depends on size and processor. The limit is tuned by `python -m hpcai.doctor --tune`; until then it is the vendor's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from hpcai.comm import tuned
from hpcai.errors import counted

FILE = "node"
"""The file of the cache with the limits."""

GUESSED = {"AuthenticAMD": 8 << 20, "GenuineIntel": 256 << 10}
OTHERS = 1 << 20
"""Limits in bytes where nothing was tuned (bench/results/allreduce.md says on which processors they were measured)."""

FEW, SEGMENT = 3, 256 << 10
"""More ranks than this wait for each other twice a segment of so many bytes, so that without a measurement they use one only."""


def key(ranks: int) -> str:
    """Return machine and ranks in words: a limit holds for these."""
    return f"{counted(ranks, 'rank')} on {tuned.machine()}"


def limit(ranks: int) -> tuple[int, str]:
    """Return the limit in bytes, and its origin: "$HPCAI_STAGED_BYTES", "tuned" or "untuned"."""
    if given := os.environ.get("HPCAI_STAGED_BYTES"):
        return int(given), "$HPCAI_STAGED_BYTES"
    if (known := _read().get(key(ranks))) is not None:
        return known, "tuned"
    guessed = GUESSED.get(tuned.vendor(), OTHERS)
    return guessed if ranks <= FEW else min(guessed, SEGMENT), "untuned"


def best(sizes: Sequence[int], staged: Sequence[float], reached: Sequence[float]) -> int:
    """Return the limit with the least sum of relative times, from the seconds of both ways at each size.

    >>> best([1, 2, 4], staged=[1.0, 3.0, 8.0], reached=[2.0, 3.1, 6.0])
    2
    """
    costs = []
    for count in range(len(sizes) + 1):
        times = [*staged[:count], *reached[count:]]
        costs.append(sum(time / min(pair) for time, *pair in zip(times, staged, reached, strict=True)))
    chosen = costs.index(min(costs))
    return sizes[chosen - 1] if chosen else 0


def save(staged_bytes: int, ranks: int) -> str:
    """Add or replace the limit of this machine in the cache; returns the file's path. Raises: OSError."""
    entries = {name: {"staged_bytes": value} for name, value in _read().items()}
    return str(tuned.write(FILE, entries | {key(ranks): {"staged_bytes": staged_bytes}}))


def _read() -> dict[str, int]:
    def made(entry: Mapping[str, object]) -> int:
        value = entry["staged_bytes"]
        if type(value) is not int or value < 0:
            raise ValueError(value)
        return value

    return tuned.read(FILE, made)
