"""Reducers' states, which are trees of tuples of memories, arrays that are the same on all ranks, and counters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpcai.comm.collectives import Collectives
from hpcai.reduce.combine import Remembered, Scattered, owed
from hpcai.reduce.policy import Parts
from hpcai.xp import Array


def remembered(state: Any, start: int) -> list[tuple[int, Remembered]]:
    """Return the memories in a state, each with its start in the gradient. The state is for the gradient from `start` on."""
    if isinstance(state, Remembered):
        return [(start, state)]
    if isinstance(state, Parts):
        parts = zip(state.starts, state.states, strict=True)
        return [found for offset, part in parts for found in remembered(part, start + offset)]
    return [found for part in state for found in remembered(part, start)] if isinstance(state, tuple) else []


def owed_by_owner(state: Remembered) -> Array | None:
    """Return this rank's residual as the owner of a share (see combine.by_scatter); None if there are no owners."""
    return state.inner.owed if isinstance(state.inner, Scattered) else None


def common(state: Any) -> list[Array]:
    """Return the arrays of a state that are the same on all ranks."""
    if isinstance(state, Remembered):
        return common(state.inner)
    if isinstance(state, Scattered):
        return common((state.first, state.second))
    if isinstance(state, tuple):
        return [array for part in state for array in common(part)]
    return [state] if isinstance(state, np.ndarray) else []


def counters(state: Any) -> Any:
    """Return the counters of a state, as JSON."""
    if isinstance(state, Parts):
        return [counters(part) for part in state.states]
    if isinstance(state, tuple):
        return [counters(part) for part in state]
    return None if isinstance(state, np.ndarray) else state


def with_counters(state: Any, saved: Any) -> Any:
    """Return `state` with counters from `saved`; parts of another kind, as after another --compress, keep their own."""
    if isinstance(state, Parts):
        return state._replace(states=with_counters(state.states, saved))
    if isinstance(state, tuple) and isinstance(saved, list) and len(saved) == len(state):
        parts = [with_counters(part, kept) for part, kept in zip(state, saved, strict=True)]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return saved if type(state) is type(saved) is int else state


def norm(state: Any, comm: Collectives) -> float | None:
    """Return the norm of this rank's whole residual (see combine.owed); None if it has no memory."""
    found = remembered(state, 0)
    return math.sqrt(sum(float(np.linalg.norm(owed(kept, comm))) ** 2 for _, kept in found)) if found else None
