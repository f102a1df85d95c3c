"""What reducers remember between steps, as a checkpoint's arrays and JSON, for any number of ranks.

Every rank has its own memory. All of them are saved; with as many ranks each gets its own back, bit for bit. With another number
each gets the mean of all, so that the mean of memories, which is what is still owed to the gradient, stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.train.replica import Replica
from hpcai.xp import Array


def gather(mine: Replica, comm: Communicator) -> tuple[dict[str, Array], Any]:
    """(arrays, JSON) for a checkpoint, on every rank: the memories (P, n) and the counters of each bucket. Collective."""
    if mine.reducer is None:
        return {}, None
    memories = np.zeros((comm.size, mine.params.size), np.float32)
    for bucket, state in zip(mine.buckets, mine.reducer_states, strict=True):
        for array in _arrays(state):
            memories[comm.rank, bucket] = array
    return {"memories": comm.allgather(memories)}, [_counters(state) for state in mine.reducer_states]


def restore(mine: Replica, comm: Communicator, memories: Array | None, counters: Any) -> None:
    """Fill the reducers' states; without memories (a run that did not compress) they stay as they are."""
    if mine.reducer is None or memories is None:
        return
    own = memories[comm.rank] if len(memories) == comm.size else memories.mean(0, dtype=np.float64).astype(np.float32)
    for i, (bucket, state) in enumerate(zip(mine.buckets, mine.reducer_states, strict=True)):
        for array in _arrays(state):
            array[:] = own[bucket]
        mine.reducer_states[i] = _with_counters(state, counters[min(i, len(counters) - 1)])


def _arrays(state: Any) -> list[Array]:
    if isinstance(state, tuple):
        return [array for part in state for array in _arrays(part)]
    return [state] if isinstance(state, np.ndarray) else []


def _counters(state: Any) -> Any:
    if isinstance(state, tuple):
        return [_counters(part) for part in state]
    return None if isinstance(state, np.ndarray) else state


def _with_counters(state: Any, saved: Any) -> Any:
    if isinstance(state, tuple) and isinstance(saved, list) and len(saved) == len(state):
        return tuple(_with_counters(part, kept) for part, kept in zip(state, saved, strict=True))
    return state if isinstance(state, np.ndarray) or saved is None else saved
