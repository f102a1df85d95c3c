"""What checkpoints and their files are called."""

from __future__ import annotations

import re
from collections.abc import Iterable

MANIFEST = "manifest.json"

OURS = re.compile(r"shard-\d{5,}-of-\d{5,}\.safetensors|manifest\.json")
"""The files of a checkpoint: where folders are shared with others, nothing else is deleted."""


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


def in_order(names: Iterable[str]) -> list[str]:
    """Those names that are checkpoints', by step.

    >>> in_order(["step-000000020", "step-000000003", "step-1000", ".writing-step-000000030"])
    ['step-000000003', 'step-000000020']
    """
    steps = [
        int(name[5:]) for name in names if name.startswith("step-") and name[5:].isdecimal() and name == named(int(name[5:]))
    ]
    return [named(step) for step in sorted(steps)]


def next_previous(names: Iterable[str]) -> str:
    """A name for what is set aside, beside those that are there.

    >>> next_previous(["previous-2", "previous-one", "step-000000003"])
    'previous-3'
    """
    numbers = [int(name[9:]) for name in names if name.startswith("previous-") and name[9:].isdecimal()]
    return f"previous-{max(numbers, default=0) + 1}"
