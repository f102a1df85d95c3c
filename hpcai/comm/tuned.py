"""What `python -m hpcai.doctor --tune` has measured: files of the cache, each with values for machines by their names."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def cache_file(name: str) -> Path:
    """Return the path of a file in $HPCAI_CACHE, else $XDG_CACHE_HOME/hpcai, else ~/.cache/hpcai."""
    base = os.environ.get("HPCAI_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "hpcai"
    )
    return Path(base) / f"{name}.json"


def machine() -> str:
    """Return the processor and the number of its cores, in words."""
    return f"{_cpuinfo('model name') or platform.machine()}, {os.cpu_count()} cores"


def vendor() -> str:
    """Return the processor's vendor as it names itself, such as GenuineIntel; empty if it is not known."""
    return _cpuinfo("vendor_id")


def _cpuinfo(field: str) -> str:
    try:
        found = re.search(rf"{field}\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def read(name: str, made: Callable[[Mapping[str, Any]], T]) -> dict[str, T]:
    """Return the entries of a file; a file that cannot be read or understood is as good as none."""
    try:
        entries = json.loads(cache_file(name).read_text())
        return {key: made(entry) for key, entry in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def write(name: str, entries: Mapping[str, Mapping[str, Any]]) -> Path:
    """Replace a file's entries; returns its path. Raises: OSError."""
    path = cache_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(entries, indent=1, sort_keys=True))
    beside.replace(path)
    return path
