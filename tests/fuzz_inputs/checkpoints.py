"""Checkpoints whose manifest or shards are damaged or made up: reading one is refused, or gives exactly what was saved."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from hpcai.checkpoint import naming
from tests.fuzz_inputs.kind import Kind
from tests.train import mutations

STEP = naming.name_of(2)
_good: list[tuple[Path, dict[str, Any]]] = []


def _prepare(folder: Path) -> None:
    path = mutations.good(folder)
    _good[:] = [(path, mutations.parameters(path))]


def _make(rng: random.Random, folder: Path) -> str:
    shutil.copytree(_good[0][0], folder / STEP)
    return str(mutations.mutated(rng, folder / STEP))


def _attempt(folder: Path) -> Any:
    return {name: array.tobytes() for name, array in mutations.parameters(folder / STEP).items()}


def _saved(folder: Path) -> Any:
    return {name: array.tobytes() for name, array in _good[0][1].items()}


checkpoint = Kind(_make, _attempt, _saved, _prepare)
