"""How much memory a process can still have."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_ROOT = Path("/")


def available() -> int:
    """Bytes that this process can still take without swapping: what the machine, its control group and ulimit -v leave.

    All of a machine's processes draw on the same, so another rank may be quicker.
    """
    return max(0, min([sys.maxsize, *_machine(), *_control_group(), *_limit()]))


def _machine() -> list[int]:
    for line in _lines("proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return [int(line.split()[1]) << 10]
    return []


def _control_group() -> list[int]:
    """Under cgroup 2 and 1, as a container or a batch job sees itself, and its parents."""
    found = []
    for line in _lines("proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = Path("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
            most, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
            group = top / path.strip("/")
            for place in [group, *group.parents][: len(group.parts) - len(top.parts) + 1]:
                most_bytes, used_bytes = _number(place / most), _number(place / used)
                if most_bytes is not None and used_bytes is not None:
                    found.append(most_bytes - used_bytes + _reclaimable(place))
    return found


def _reclaimable(group: Path) -> int:
    """What the group's page cache holds, which counts as used and yields to who asks."""
    return sum(int(line.split()[1]) for line in _lines(group / "memory.stat") if line.startswith("inactive_file "))


def _limit() -> list[int]:
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = next(iter(_lines("proc/self/statm")), "0").split()[0]
    return [] if most == resource.RLIM_INFINITY else [most - int(used) * resource.getpagesize()]


def _number(path: Path) -> int | None:
    """The number in a file; None where it has none, as in `max`."""
    text = next(iter(_lines(path)), "")
    return int(text) if text.isdigit() else None


def _lines(path: str | Path) -> list[str]:
    try:
        return (_ROOT / path).read_text().splitlines()
    except OSError:
        return []
