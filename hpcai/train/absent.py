"""The message for a --resume that names no checkpoint. The message says what the place has instead, and what to do."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from hpcai.checkpoint.local import Local
from hpcai.checkpoint.naming import MANIFEST, NAMED
from hpcai.checkpoint.storage import Store
from hpcai.train.options.arguments import shown

SHOWN = 5
"""How many names of a folder a message lists."""

ADVICE = "give a run's folder, its folder of checkpoints or one checkpoint (step-N), or leave --resume out to start afresh"


def refusal(given: str, place: Store, name: str) -> str:
    """Return why there is no checkpoint of that name; empty if there is a checkpoint, even an incomplete one."""
    try:
        if isinstance(place, Local):
            said = _of_folder(place, place.folder / name)
        else:
            said = "" if place.files(name) else f"has nothing{_others(place)}"
    except OSError:
        return ""  # the code that reads the checkpoint reports the error
    return f"--resume {given} {said}; {ADVICE}" if said else ""


def _of_folder(place: Local, folder: Path) -> str:
    if not os.path.lexists(folder):
        return f"does not exist{_others(place) or _nearest(folder)}"
    if not folder.is_dir():
        return f"is not a folder{_others(place)}"
    if (folder / MANIFEST).exists() or (NAMED.fullmatch(folder.name) and any(folder.iterdir())):
        return ""
    return f"holds no checkpoint: it has {_listed(folder)}"


def _others(place: Store) -> str:
    """Return a phrase about the checkpoints in the same place; empty if there are none."""
    names = place.names()
    several = (
        f"{len(names)} checkpoints, {names[0]} to {names[-1]}" if names[1:] else f"the checkpoint {names[0]}" if names else ""
    )
    return f", but beside it there {'are' if names[1:] else 'is'} {several}" if names else ""


def _nearest(folder: Path) -> str:
    """Return a phrase about the nearest existing parent of a path and its contents."""
    there = next((one for one in folder.absolute().parents if one.is_dir()), Path("/"))
    return f"; {there} has {_listed(there)}"


def _listed(folder: Path) -> str:
    names = sorted(itertools.islice((one.name for one in os.scandir(folder)), 1000))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(shown(name) for name in names[:SHOWN])}{more}" if names else "nothing"
