"""The message where --resume names something without a checkpoint: what is there, and what to do."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from hpcai.checkpoint.local import Local
from hpcai.checkpoint.naming import MANIFEST, NAMED
from hpcai.checkpoint.storage import Store
from hpcai.train.options.arguments import shown

SHOWN = 5
"""Names of a folder."""

ADVICE = "name a run's folder, one of checkpoints or a checkpoint in it (step-N), or leave --resume out to start afresh"


def refusal(given: str, place: Store, name: str) -> str:
    """Why there is no checkpoint of that name, in words; empty where there is one, be it whole or not."""
    try:
        if isinstance(place, Local):
            said = _of_folder(place, place.folder / name)
        else:
            said = "" if place.files(name) else f"has nothing{_others(place)}"
    except OSError:
        return ""  # who reads it says so
    return f"--resume {given} {said}; {ADVICE}" if said else ""


def _of_folder(place: Local, folder: Path) -> str:
    if not os.path.lexists(folder):
        return f"does not exist{_others(place) or _nearest(folder)}"
    if not folder.is_dir():
        return f"is no folder{_others(place)}"
    if (folder / MANIFEST).exists() or (NAMED.fullmatch(folder.name) and any(folder.iterdir())):
        return ""
    return f"holds no checkpoint: it has {_listed(folder)}"


def _others(place: Store) -> str:
    """The checkpoints beside it."""
    names = place.names()
    several = (
        f"{len(names)} checkpoints, {names[0]} to {names[-1]}" if names[1:] else f"the checkpoint {names[0]}" if names else ""
    )
    return f", but beside it there {'are' if names[1:] else 'is'} {several}" if names else ""


def _nearest(folder: Path) -> str:
    """The part of a path that there is, and what it has."""
    there = next((one for one in folder.absolute().parents if one.is_dir()), Path("/"))
    return f"; {there} has {_listed(there)}"


def _listed(folder: Path) -> str:
    names = sorted(itertools.islice((one.name for one in os.scandir(folder)), 1000))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(shown(name) for name in names[:SHOWN])}{more}" if names else "nothing"
