"""What reducers remember between steps, as a checkpoint's arrays and JSON, for any number of ranks.

Every rank has its own memory. All of them are saved; with as many ranks each gets its own back, bit for bit. With another number
each gets the mean of all, so that the mean of memories, which is what is still owed to the gradient, stays. The rest of a
reducer's state, arrays and counters, is the same on all ranks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.reduce.combine import Remembered
from hpcai.reduce.policy import Parts
from hpcai.train.replica import Replica
from hpcai.xp import Array

PREFIX = "reducer."


def gather(mine: Replica, comm: Communicator) -> tuple[dict[str, Array], Any]:
    """(arrays, JSON) for a checkpoint, on every rank: memories (P, n), common arrays, and each bucket's counters. Collective."""
    if not mine.reducers:
        return {}, mine.reducer_states
    memories = np.zeros((comm.size, mine.params.size), np.float32)
    arrays: dict[str, Array] = {}
    for i, (bucket, state) in enumerate(zip(mine.buckets, mine.reducer_states, strict=True)):
        for start, memory in _memories(state, bucket.start):
            memories[comm.rank, start : start + memory.size] = memory
        arrays |= {f"{PREFIX}{i}.{k}": array for k, array in enumerate(_common(state))}
    return arrays | {"memories": comm.allgather(memories)}, [_counters(state) for state in mine.reducer_states]


def restore(mine: Replica, comm: Communicator, arrays: dict[str, Array], counters: Any) -> None:
    """Fill the reducers' states from arrays that all ranks have. Without memories (a run that did not compress) they stay."""
    if mine.grain and counters:
        mine.reducer_states[:] = counters
    if not mine.reducers or "memories" not in arrays:
        return
    memories = arrays["memories"]
    own = memories[comm.rank] if len(memories) == comm.size else memories.mean(0, dtype=np.float64).astype(np.float32)
    for i, (bucket, state) in enumerate(zip(mine.buckets, mine.reducer_states, strict=True)):
        for start, memory in _memories(state, bucket.start):
            memory[:] = own[start : start + memory.size]
        for k, array in enumerate(_common(state)):
            kept = arrays.get(f"{PREFIX}{i}.{k}")
            if kept is not None and kept.shape == array.shape:
                array[...] = kept
        mine.reducer_states[i] = _with_counters(state, counters[min(i, len(counters) - 1)])


def norm(state: Any) -> float | None:
    """Of the memory in a reducer's state; None where there is none."""
    found = _memories(state, 0)
    return math.sqrt(sum(float(np.dot(memory, memory)) for _, memory in found)) if found else None


def _memories(state: Any, start: int) -> list[tuple[int, Array]]:
    """Memories with the places in the gradient where they begin."""
    if isinstance(state, Remembered):
        return [(start, state.memory)]
    if isinstance(state, Parts):
        parts = zip(state.starts, state.states, strict=True)
        return [found for offset, part in parts for found in _memories(part, start + offset)]
    return [found for part in state for found in _memories(part, start)] if isinstance(state, tuple) else []


def _common(state: Any) -> list[Array]:
    if isinstance(state, Remembered):
        return _common(state.inner)
    if isinstance(state, tuple):
        return [array for part in state for array in _common(part)]
    return [state] if isinstance(state, np.ndarray) else []


def _counters(state: Any) -> Any:
    if isinstance(state, tuple):
        return [_counters(part) for part in state]
    return None if isinstance(state, np.ndarray) else state


def _with_counters(state: Any, saved: Any) -> Any:
    if isinstance(state, tuple) and isinstance(saved, list) and len(saved) == len(state):
        parts = [_with_counters(part, kept) for part, kept in zip(state, saved, strict=True)]
        return type(state)(*parts) if isinstance(state, (Remembered, Parts)) else tuple(parts)
    return state if isinstance(state, np.ndarray) or saved is None else saved
