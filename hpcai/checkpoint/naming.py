"""The names of checkpoints and their files."""

from __future__ import annotations

import re
from collections.abc import Iterable

MANIFEST = "manifest.json"

NAMED = re.compile(r"step-([0-9]{9}|[1-9][0-9]{9,15})")
"""The name of a checkpoint's folder, as `name_of` makes it: 16 digits at most, so that every JSON parser reads the same step."""

PREVIOUS = re.compile(r"previous-[0-9]{1,15}")

OURS = re.compile(r"shard-[0-9]{5,16}-of-[0-9]{5,16}\.safetensors|manifest\.json")
"""The names of a checkpoint's files. Folders may be shared with others, so no other file is deleted."""


def split(where: str) -> tuple[str, str]:
    """Return the place of a checkpoint and its name, the last part of the path or URL.

    >>> split("s3://bucket/run/step-000000020/")
    ('s3://bucket/run', 'step-000000020')
    """
    head, _, tail = where.rstrip("/").rpartition("/")
    return (head or ("/" if where.startswith("/") else ".")), tail


def name_of(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step-{step:09d}"


def shard(rank: int, ranks: int) -> str:
    """Return the name of one rank's shard."""
    return f"shard-{rank:05d}-of-{ranks:05d}.safetensors"


def in_order(names: Iterable[str]) -> list[str]:
    """Return those `names` that are names of checkpoints, sorted by step.

    >>> in_order(["step-000000020", "step-000000003", "step-1000", ".writing-step-000000030"])
    ['step-000000003', 'step-000000020']
    """
    return sorted((name for name in names if NAMED.fullmatch(name)), key=step_of)


def step_of(name: str) -> int:
    """Return the step of a checkpoint from its name."""
    return int(name[5:])


def next_previous(names: Iterable[str]) -> str:
    """Return a new name previous-N for checkpoints that are set aside: N follows the largest in `names`.

    >>> next_previous(["previous-2", "previous-one", "step-000000003"])
    'previous-3'
    """
    numbers = [int(name[9:]) for name in names if PREVIOUS.fullmatch(name)]
    return f"previous-{max(numbers, default=0) + 1}"
