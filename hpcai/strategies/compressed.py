"""Compressed gradients: the reducer of a bucket sends fewer bytes; with a memory it keeps the residual for the next step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hpcai import arena
from hpcai.reduce import states
from hpcai.reduce.counting import CostRecord
from hpcai.reduce.reducer import Reducer
from hpcai.strategies.sharded import Sharded
from hpcai.strategies.strategy import Kept, Setup, State, Strategy, Totals, Wrapped, wrapping


@dataclass
class Compressed(Wrapped):
    """The state of `compressed`: each bucket's reducer, the reducer's state, and a record of its cost (`tallies`).

    gaps: slices of the layout that belong to no parameter.
    """

    buckets: list[slice]
    reducers: Sequence[Reducer]
    states: list[Any]
    gaps: list[slice]
    tallies: list[CostRecord] = field(default_factory=list)


def compressed(inner: Strategy, reducers: Sequence[Reducer]) -> Strategy:
    """Return `inner` with compressed gradients: reducer i replaces bucket i by its mean over data-parallel ranks, not by the sum.

    To make up for that, `scale` multiplies the loss's gradient by the number of data-parallel ranks.
    """

    def init(inner_state: State, setup: Setup) -> Compressed:
        grads = inner_state.buffers.grads
        made = [reducer.init(grads[bucket]) for reducer, bucket in zip(reducers, setup.buckets, strict=True)]
        return Compressed(
            inner_state, setup.buckets, reducers, made, arena.gaps(setup.model.layout), [CostRecord() for _ in setup.buckets]
        )

    def filled(state: Compressed, i: int) -> None:
        base: Sharded = state.inner
        bucket = base.buffers.grads[state.buckets[i]]
        with state.tallies[i].of(base.setup.mesh.dp, base.setup.algorithm) as counted:
            mean, _, state.states[i] = state.reducers[i].reduce(bucket, counted, state.states[i])
        if mean is not bucket:
            bucket[:] = mean

    def settle(state: Compressed, totals: Totals) -> Totals:
        for gap in state.gaps:  # decoding may write to elements that belong to no parameter
            state.buffers.grads[gap] = 0
        return inner.settle(state.inner, totals)

    return wrapping(inner, init)._replace(
        scale=lambda state: inner.scale(state.inner) * state.inner.setup.mesh.dp.size,
        filled=filled,
        settle=settle,
        kept=lambda state: [*inner.kept(state.inner), *_kept(state)],
    )


def _kept(state: Compressed) -> list[Kept]:
    """Return what outlives a step: this rank's memory of each bucket, residuals of owners, state equal on all ranks, counters."""
    found = []
    for i, (bucket, one) in enumerate(zip(state.buckets, state.states, strict=True)):
        for start, remembered in states.remembered(one, bucket.start):
            found.append(Kept("memory", "own", remembered.memory, start=start, early=True))
            if (owed := states.owed_by_owner(remembered)) is not None:
                found.append(Kept("owed", "owner", owed, start=start, early=True))
        found += [Kept(f"reducer.{i}.{k}", "common", array, early=True) for k, array in enumerate(states.common(one))]

        def put(counter: Any, i: int = i) -> None:
            state.states[i] = states.with_counters(state.states[i], counter)

        found.append(Kept(f"reducer.{i}", "counter", counter=states.counters(one), put=put, early=True))
    return found
