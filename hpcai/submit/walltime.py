"""A prediction of whether a run fits into its walltime, from the step time of earlier runs."""

from __future__ import annotations

import json
import re
import statistics
from math import ceil
from pathlib import Path
from typing import NamedTuple

from hpcai.errors import UsageError, counted
from hpcai.train.options.options import RENAMED, Options
from hpcai.train.resume import GPT_IDENTITY, IDENTITY

FEW_STEPS = 5
"""How many steps at least must fit between the start and the signal."""

MEASURED_STEPS = 50
"""How many of a run's last steps the median step time is taken from."""

LONGEST_S = 366 * 86_400
"""The longest allocation in seconds; Slurm's own numbers overflow beyond some thousands of years."""

TAIL_BYTES, SUMMARY_BYTES = 1 << 16, 1 << 26
"""How many bytes at most are read from the end of a run's metrics.jsonl, and of its summary.json."""

ALIKE = [RENAMED.get(name, name) for name in ("data", *IDENTITY, *GPT_IDENTITY, "mesh", "compress") if name != "seed"]
"""Options in which another run must agree, so that its step time can be used."""


UNREADABLE = (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError)
"""Errors of reading a file that another program wrote, or that was damaged."""


class Measured(NamedTuple):
    """A step time in seconds, the folder of the run in which it was measured, and the last step of that run."""

    step_s: float
    where: Path
    steps: int


def seconds(text: str) -> int:
    """The seconds of a time as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    >>> seconds("90"), seconds("1:30:00"), seconds("2-12")
    (5400, 5400, 216000)

    Raises: UsageError for other texts, for 0, and for more than a year.
    """
    found = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+)(?::([0-9]+))?(?::([0-9]+))?", text)
    if not found or len(text) > 40:
        raise UsageError(f"--time wants minutes, H:M:S or D-H:M:S, as in 1:00:00, got {text!r}")
    days, first, second, third = found.groups()
    if days is not None:
        parts = [int(days) * 24 + int(first), int(second or 0), int(third or 0)]
    elif third is not None:
        parts = [int(first), int(second), int(third)]
    else:
        parts = [0, int(first), int(second or 0)]
    total = 3600 * parts[0] + 60 * parts[1] + parts[2]
    if not total:
        raise UsageError(f"--time {text} is no time at all; give a time above 0")
    if total > LONGEST_S:
        raise UsageError(f"--time {text} is longer than a year; ask for less, the job is requeued by itself")
    return total


def duration(amount_s: float) -> str:
    """Seconds as H:M:S, rounded up.

    >>> duration(3725)
    '1:02:05'
    """
    minutes, rest = divmod(ceil(amount_s), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def measured(options: Options, ranks: int) -> Measured | None:
    """The step time of the run in `options.run_dir`, else of a finished run like it, on as many ranks, in a folder beside it."""
    folder = Path(options.run_dir or "runs")
    own = _read(folder, None, ranks)
    if own is not None:
        return own
    try:
        siblings = sorted(path for path in folder.parent.iterdir() if path.is_dir() and path.name != folder.name)
    except OSError:
        return None
    found = (_read(path, options, ranks) for path in siblings)
    return next((one for one in found if one is not None), None)


def _read(folder: Path, like: Options | None, ranks: int) -> Measured | None:
    """The step time from metrics.jsonl, or None; with `like`, only of a finished run with these options."""
    try:
        if like is not None and not _alike(summary(folder), like, ranks):
            return None
        lines = _end(folder / "metrics.jsonl", TAIL_BYTES).decode().splitlines()[-MEASURED_STEPS:]
        records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        found = Measured(statistics.median(float(record["step_ms"]) for record in records) / 1e3, folder, records[-1]["step"])
        return found if 0 <= found.step_s < LONGEST_S and type(found.steps) is int and found.steps >= 0 else None
    except UNREADABLE:
        return None


def summary(folder: Path) -> dict:
    """The contents of a finished run's summary.json. Raises: one of UNREADABLE."""
    path = folder / "summary.json"
    if not path.exists():
        raise FileNotFoundError(path)
    found = json.loads(_end(path, SUMMARY_BYTES))
    if not isinstance(found, dict) or not isinstance(found["options"], dict):
        raise ValueError(f"{path} is not the summary of a run")
    return found


def _end(path: Path, most: int) -> bytes:
    """The last `most` bytes of a regular file."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - most))
        return file.read(most)


def _alike(summary: dict, like: Options, ranks: int) -> bool:
    had = {RENAMED.get(name, name): value for name, value in summary["options"].items()}
    wanted = json.loads(json.dumps({name: getattr(like, name) for name in ALIKE}))
    return summary["ranks"] == ranks and all(had.get(name) == value for name, value in wanted.items())


def check(time: str, lead_s: int, found: Measured | None, total_steps: int | None, resumes: bool) -> str:
    """The expected duration, in words, of a run of `total_steps` in allocations of `time` that end `lead_s` seconds early.

    Raises: UsageError if the walltime is too short for FEW_STEPS steps.
    """
    usable, step_s = seconds(time) - lead_s, found.step_s if found else 0.0
    if usable <= FEW_STEPS * step_s:
        some = f" and {FEW_STEPS} steps of {step_s:.3g} s (measured in {found.where})" if found else ""
        raise UsageError(f"--time {time} is too short for the signal {lead_s} s before its end{some}; ask for more time")
    if found is None:
        return "step time not known: no earlier run like this one beside its folder"
    said = f"{1e3 * step_s:.1f} ms a step (measured in {found.where})"
    if total_steps is None:
        return said
    left = max(0, total_steps - (found.steps if resumes else 0))
    whole, allocations = left * step_s, max(1, ceil(left * step_s / usable))
    fits = "fits" if allocations == 1 else f"takes about {allocations} allocations of {time}, requeued by itself"
    return f"{counted(left, 'step')} of {said} take{'s' * (left == 1)} {duration(whole)} and start-up: it {fits}"
