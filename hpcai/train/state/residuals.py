"""What reducers remember between steps, out of them as runs of a rank's flat gradient, and back on any number of ranks and mesh.

Every rank has its own memory. All of them are saved, and what owners owe to the mean (see combine.Scattered). With as many
data-parallel ranks each gets its own back, on the same mesh bit for bit. With another number each gets the mean of all memories,
so that what is still owed to the gradient stays. The rest of a reducer's state, arrays and counters, is the same on all of them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from hpcai.checkpoint import format
from hpcai.checkpoint.format import Opened
from hpcai.checkpoint.shards import Run
from hpcai.comm.communicator import Communicator
from hpcai.reduce.combine import Remembered, Scattered, owed, share
from hpcai.reduce.policy import Parts
from hpcai.train.replica import Replica
from hpcai.train.state import arrays
from hpcai.xp import Array

MEMORY, OWED, COMMON = "memory.", "owed", "reducer."
"""Names of a checkpoint's arrays: memory.D of data-parallel rank D; what owners owe; reducer.I.K, what bucket I's ranks share."""

LARGEST_EXPONENT = 256
"""More than a gradient in f32 can have, with what grains.py adds."""


class Kept(NamedTuple):
    """For one rank: its memory and what owners owe, flat like its gradient, and by name the arrays that ranks share."""

    memory: Array
    by_owners: Array
    common: dict[str, Array]


def runs(mine: Replica) -> list[Run]:
    """What this rank writes: its memory, its share of what owners owe, and, first among its likes, what they share. No copies."""
    dp, found = mine.mesh.dp, []
    for i, (bucket, state) in enumerate(zip(mine.buckets, mine.reducer_states, strict=False) if mine.reducers else ()):
        for start, kept in _remembered(state, bucket.start):
            found.append(Run(f"{MEMORY}{dp.rank}", start, kept.memory))
            if isinstance(kept.inner, Scattered):
                own = share(kept.memory.size, dp.size, dp.rank)
                found.append(Run(OWED, start + own.start, kept.inner.owed[own]))
        if dp.rank == 0:
            found += [Run(f"{COMMON}{i}.{k}", 0, array.reshape(-1)) for k, array in enumerate(_common(state))]
    return found


def counters(mine: Replica) -> Any:
    """The rest of the reducers' states, as JSON."""
    return [_counters(state) for state in mine.reducer_states] if mine.reducers else list(mine.reducer_states)


def read(mine: Replica, source: Opened) -> Kept | None:
    """From a checkpoint what this rank should remember; None where there is nothing, of a run that did not compress, or by one
    that does not. Nothing of `mine` changes. Raises: CheckpointError.
    """
    ranks = sum(name.startswith(MEMORY) for name in source.dtypes)
    if not mine.reducers or not ranks:
        return None
    dp, laid = mine.mesh.dp, arrays.laid(mine)

    def flat(name: str) -> Array:
        made = np.zeros(laid.size, np.float32)
        if name in source.dtypes:
            format.fill(made, name, laid, [slice(0, laid.size)], source, partial=True, like=arrays.number(mine))
        return made

    if ranks == dp.size:
        memory = flat(f"{MEMORY}{dp.rank}")
    else:
        total = np.zeros(laid.size)
        for rank in range(ranks):
            total += flat(f"{MEMORY}{rank}")
        memory = (total / ranks).astype(np.float32)
    common = {}
    here = arrays.number(mine)
    if here < len(source.layouts) and source.layouts[here] == laid:
        common = {name: source.whole(name, here) for name in source.names(here) if name.startswith(COMMON)}
    return Kept(memory, flat(OWED), common)


def restore(mine: Replica, kept: Kept | None, counted: Any) -> None:
    """Fill the reducers' states: from what this rank should remember, if anything, and from counters as `counters` gives them."""
    if mine.grain and counted and type(counted[0]) is int and abs(counted[0]) <= LARGEST_EXPONENT:
        mine.reducer_states[0] = counted[0]
    if not mine.reducers or not counted:
        return
    for i, (bucket, state) in enumerate(zip(mine.buckets, mine.reducer_states, strict=True)):
        if kept is not None:
            for start, one in _remembered(state, bucket.start):
                where = slice(start, start + one.memory.size)
                _fill(one, kept.memory[where], kept.by_owners[where], mine.mesh.dp)
            for k, array in enumerate(_common(state)):
                saved = kept.common.get(f"{COMMON}{i}.{k}")
                if saved is not None and saved.size == array.size:
                    array[...] = saved.reshape(array.shape)
        mine.reducer_states[i] = _with_counters(state, counted[min(i, len(counted) - 1)])


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
    """Fill the reducers' states of a replica among other ranks from this rank's before: what it owed, as an owner too, and no
    more of it. A rank's gradient is scaled by the number of ranks, as the mean divides by it, and so is what it owes of that.
    """
    if fresh.grain:
        fresh.reducer_states[:] = old.reducer_states
    if not fresh.reducers:
        return
    flat, weight = np.zeros(old.params.size, np.float32), np.float32(fresh.mesh.dp.size / old.mesh.dp.size)
    for bucket, state in zip(old.buckets, old.reducer_states, strict=True):
        for start, kept in _remembered(state, bucket.start):
            flat[start : start + kept.memory.size] = weight * owed(kept, old.mesh.dp)
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
    counters = comm.allgather_object([_counters(state) for state in mine.reducer_states])[0]
    if mine.grain:
        mine.reducer_states[:] = counters
    else:
        mine.reducer_states[:] = [_with_counters(s, kept) for s, kept in zip(mine.reducer_states, counters, strict=True)]
