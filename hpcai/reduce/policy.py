"""The policy of compression. Small arrays are not compressed, since only latency matters for them. The first steps are not
compressed, since their gradients vary widely. Parts of an array may each be compressed in their own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hpcai.comm.collectives import Collectives
from hpcai.errors import counted
from hpcai.ops import ranges
from hpcai.ops.door import takes
from hpcai.reduce.combine import exact
from hpcai.reduce.reducer import Reduced, Reducer, State
from hpcai.xp import Array


def policy(reducer: Reducer, *, smallest: int = 0, warmup: int = 0) -> Reducer:
    """Use `reducer` for arrays of at least `smallest` elements after the first `warmup` arrays, and otherwise the exact mean.

    State: (arrays so far, the reducer's own state, or None for a small array).
    """
    ranges.counts(policy, 0, smallest=smallest, warmup=warmup)
    plain = exact()

    def init(x: Array) -> State:
        return 0, reducer.init(x) if x.size >= smallest else None

    @takes(x="f32 n", writes="x")
    def reduce(x: Array, comm: Collectives, state: State) -> Reduced:
        count, inner = state
        if x.size < smallest or count < warmup:
            return plain.reduce(x, comm, None)._replace(state=(count + 1, inner))
        done = reducer.reduce(x, comm, inner)
        return done._replace(state=(count + 1, done.state))

    return Reducer(reducer.name, init, reduce)


class Parts(NamedTuple):
    """The state of `by_parts`: the start of each part, and the state of each part's reducer."""

    starts: tuple[int, ...]
    states: tuple[State, ...]


def by_parts(parts: Sequence[tuple[slice, Reducer]]) -> Reducer:
    """Reduce consecutive slices, which cover the whole array, each by its own reducer. State: Parts.

    Raises: ValueError unless slices are consecutive. Cost: the sum of the parts' costs; each part has its own calls.
    """
    names = list(dict.fromkeys(reducer.name for _, reducer in parts))
    ends = [0, *(where.stop for where, _ in parts)]
    if not parts or [where.start for where, _ in parts] != ends[:-1]:
        raise ValueError(f"by_parts wants consecutive slices from 0 on, got {[where for where, _ in parts]}")

    def init(x: Array) -> State:
        return Parts(tuple(where.start for where, _ in parts), tuple(reducer.init(x[where]) for where, reducer in parts))

    @takes(x="f32 n", writes="x")
    def reduce(x: Array, comm: Collectives, state: State) -> Reduced:
        if ends[-1] not in (x.size, None):
            raise ValueError(f"by_parts wants an array of {counted(ends[-1], 'element')}, got {x.size}")
        states, residual = [], None
        for (where, reducer), inner in zip(parts, state.states, strict=True):
            done = reducer.reduce(x[where], comm, inner)
            x[where] = done.mean
            states.append(done.state)
            if done.residual is not None:
                residual = np.zeros_like(x) if residual is None else residual
                residual[where] = done.residual
        return Reduced(x, residual, Parts(state.starts, tuple(states)))

    return Reducer(" and ".join(names), init, reduce)
