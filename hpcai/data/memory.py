"""The memory that a process can still get, from its machine, its control groups and its own limit."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_ROOT = Path("/")


def available() -> int:
    """Return the bytes that this process can take without swapping: the least that machine, control groups and ulimit -v leave.

    All processes of a machine share its memory, so another rank may take it first.
    """
    known = [free for free in (machine(), limit()) if free is not None]
    return max(0, min([sys.maxsize, *known, *(free for _, free in control_groups())]))


def machine() -> int | None:
    """Return the bytes that the kernel would give without swapping; None if the kernel does not say."""
    for line in _lines("proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def control_groups() -> list[tuple[Path, int]]:
    """Return this process's control groups with a limit, of version 2 or 1, and their parents, each with the bytes it leaves."""
    found = []
    for line in _lines("proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = _ROOT / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
            most, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
            cached = "total_inactive_file" if controllers else "inactive_file"
            group = top / path.strip("/")
            for place in [group, *group.parents][: len(group.parts) - len(top.parts) + 1]:
                most_bytes, used_bytes = _number(place / most), _number(place / used)
                if most_bytes is not None and used_bytes is not None:
                    found.append((place, most_bytes - used_bytes + _reclaimable(place, cached)))
    return found


def limit() -> int | None:
    """Return the bytes of address space that ulimit -v leaves to this process; None if there is no limit."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = next(iter(_lines("proc/self/statm")), "0").split()[0]
    return None if most == resource.RLIM_INFINITY else most - int(used) * resource.getpagesize()


def _reclaimable(group: Path, cached: str) -> int:
    """Return the bytes in the group's page cache: they count as used, and are given up on demand."""
    return sum(int(line.split()[1]) for line in _lines(group / "memory.stat") if line.startswith(f"{cached} "))


def _number(path: Path) -> int | None:
    """Return the number in a file; None if the file has none, as with `max`."""
    text = next(iter(_lines(path)), "")
    return int(text) if text.isdigit() else None


def _lines(path: str | Path) -> list[str]:
    try:
        return (_ROOT / path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
