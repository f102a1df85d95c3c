"""What reducers remember between steps, as a checkpoint's arrays and JSON, for any number of ranks.

Every rank has its own memory. All of them are saved, and what owners owe to the mean (see combine.Scattered); with as many ranks
each gets its own back, bit for bit. With another number each gets the mean of all memories, so that what is still owed to the
gradient stays. The rest of a reducer's state, arrays and counters, is the same on all ranks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.reduce.combine import Remembered, Scattered, owed, share
from hpcai.reduce.policy import Parts
from hpcai.train.replica import Replica
from hpcai.xp import Array

PREFIX = "reducer."


def gather(mine: Replica) -> tuple[dict[str, Array], Any]:
    """(arrays, JSON) for a checkpoint, on every rank. Collective.

    Arrays: memories (P, n), owed (n,) by the owners, and common ones; JSON: each bucket's counters. Where ranks have parts of the
    model no arrays: memories follow its cut, and what they owe is small.
    """
    comm = mine.mesh.dp
    if mine.reducers and not mine.mesh.only_dp:
        return {}, [_counters(state) for state in mine.reducer_states]
    if not mine.reducers:
        return {}, mine.reducer_states
    memories, by_owners = np.zeros((comm.size, mine.params.size), np.float32), np.zeros(mine.params.size, np.float32)
    arrays: dict[str, Array] = {}
    for i, (bucket, state) in enumerate(zip(mine.buckets, mine.reducer_states, strict=True)):
        for start, kept in _remembered(state, bucket.start):
            memories[comm.rank, start : start + kept.memory.size] = kept.memory
            if isinstance(kept.inner, Scattered):
                own = share(kept.memory.size, comm.size, comm.rank)
                by_owners[start + own.start : start + own.stop] = kept.inner.owed[own]
        arrays |= {f"{PREFIX}{i}.{k}": array for k, array in enumerate(_common(state))}
    arrays |= {"memories": comm.allgather(memories), "owed": comm.allreduce(by_owners)}
    return arrays, [_counters(state) for state in mine.reducer_states]


def restore(mine: Replica, arrays: dict[str, Array], counters: Any) -> None:
    """Fill the reducers' states from arrays that all ranks have. Without memories (of a run that did not compress, or of
    parts of a model) only counters go on."""
    if mine.grain and counters and type(counters[0]) is int:
        mine.reducer_states[:] = counters
    comm = mine.mesh.dp
    if not mine.reducers or not counters:
        return
    if "memories" not in arrays or not mine.mesh.only_dp:
        states = enumerate(mine.reducer_states)
        mine.reducer_states[:] = [_with_counters(state, counters[min(i, len(counters) - 1)]) for i, state in states]
        return
    memories = arrays["memories"]
    by_owners = arrays.get("owed", np.zeros(memories.shape[1], np.float32))
    own = memories[comm.rank] if len(memories) == comm.size else memories.mean(0, dtype=np.float64).astype(np.float32)
    for i, (bucket, state) in enumerate(zip(mine.buckets, mine.reducer_states, strict=True)):
        for start, kept in _remembered(state, bucket.start):
            _fill(kept, own[start : start + kept.memory.size], by_owners[start : start + kept.memory.size], comm)
        for k, array in enumerate(_common(state)):
            saved = arrays.get(f"{PREFIX}{i}.{k}")
            if saved is not None and saved.shape == array.shape:
                array[...] = saved
        mine.reducer_states[i] = _with_counters(state, counters[min(i, len(counters) - 1)])


def _fill(kept: Remembered, memory: Array, by_owners: Array, comm: Communicator) -> None:
    """A reducer without owners takes what they owed into every rank's memory."""
    kept.memory[:] = memory
    if isinstance(kept.inner, Scattered):
        own = share(memory.size, comm.size, comm.rank)
        kept.inner.owed[own] = by_owners[own]
    else:
        np.add(kept.memory, by_owners, out=kept.memory)


def norm(state: Any, comm: Communicator) -> float | None:
    """Of what this rank still owes, by a reducer's state; None where it has no memory."""
    found = _remembered(state, 0)
    return math.sqrt(sum(float(np.linalg.norm(owed(kept, comm))) ** 2 for _, kept in found)) if found else None


def _remembered(state: Any, start: int) -> list[tuple[int, Remembered]]:
    """Memories with the places in the gradient where they begin."""
    if isinstance(state, Remembered):
        return [(start, state)]
    if isinstance(state, Parts):
        parts = zip(state.starts, state.states, strict=True)
        return [found for offset, part in parts for found in _remembered(part, start + offset)]
    return [found for part in state for found in _remembered(part, start)] if isinstance(state, tuple) else []


def _common(state: Any) -> list[Array]:
    """The arrays that are the same on all ranks."""
    if isinstance(state, Remembered):
        return _common(state.inner)
    if isinstance(state, Scattered):
        return _common((state.first, state.second))
    if isinstance(state, tuple):
        return [array for part in state for array in _common(part)]
    return [state] if isinstance(state, np.ndarray) else []


def _counters(state: Any) -> Any:
    if isinstance(state, Parts):
        return [_counters(part) for part in state.states]
    if isinstance(state, tuple):
        return [_counters(part) for part in state]
    return None if isinstance(state, np.ndarray) else state


def _with_counters(state: Any, saved: Any) -> Any:
    """`state` with the counters of another of its kind; where the kinds differ, as with another choice of --compress, its own."""
    if isinstance(state, Parts):
        return state._replace(states=_with_counters(state.states, saved))
    if isinstance(state, tuple) and isinstance(saved, list) and len(saved) == len(state):
        parts = [_with_counters(part, kept) for part, kept in zip(state, saved, strict=True)]
        return type(state)(*parts) if isinstance(state, (Remembered, Scattered)) else tuple(parts)
    return saved if type(state) is type(saved) is int else state


def copied(state: Any, into: Any = None) -> Any:
    """A copy of reducers' states, in the arrays of an earlier copy where that has them."""
    if isinstance(state, np.ndarray):
        if isinstance(into, np.ndarray) and into.shape == state.shape:
            into[...] = state
            return into
        return state.copy()
    if isinstance(state, (tuple, list)):
        before = into if isinstance(into, (tuple, list)) and len(into) == len(state) else [None] * len(state)
        parts = [copied(part, other) for part, other in zip(state, before, strict=True)]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


def carry_over(old: Replica, fresh: Replica) -> None:
    """Fill the reducers' states of a replica among other ranks from this rank's before: what it owed, as an owner too."""
    if fresh.grain:
        fresh.reducer_states[:] = old.reducer_states
    if not fresh.reducers:
        return
    flat = np.zeros(old.params.size, np.float32)
    for bucket, state in zip(old.buckets, old.reducer_states, strict=True):
        for start, kept in _remembered(state, bucket.start):
            flat[start : start + kept.memory.size] = owed(kept, old.mesh.dp)
    same = old.buckets == fresh.buckets
    for i, (bucket, state) in enumerate(zip(fresh.buckets, fresh.reducer_states, strict=True)):
        for start, kept in _remembered(state, bucket.start):
            kept.memory[:] = flat[start : start + kept.memory.size]
        before = old.reducer_states[i if same else 0]
        for array, known in zip(_common(state), _common(before), strict=False) if same else ():
            if array.shape == known.shape:
                array[...] = known
        fresh.reducer_states[i] = _with_counters(state, _counters(before))


def equal(mine: Replica) -> None:
    """Give all ranks what is alike on those that were there before, from rank 0. Collective."""
    comm = mine.mesh.dp
    for state in mine.reducer_states:
        for array in _common(state):
            comm.broadcast(array)
    counters = comm.exchange([_counters(state) for state in mine.reducer_states])[0]
    if mine.grain:
        mine.reducer_states[:] = counters
    else:
        mine.reducer_states[:] = [_with_counters(s, kept) for s, kept in zip(mine.reducer_states, counters, strict=True)]
