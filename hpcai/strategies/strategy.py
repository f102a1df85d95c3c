"""The protocol of a strategy, and of what outlives a step.

A step computes gradients, and the strategy decides what becomes of them: how they are reduced, what this rank updates, and what
ranks share afterwards. Wrappers return the same type, so that `redundant(compressed(sharded(1), reducers))` reads as what it
does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from hpcai.nn.layers import Params
from hpcai.nn.models import Model
from hpcai.optim.optimizers import Optimizer
from hpcai.optim.optimizers import State as OptimizerState
from hpcai.parallel.mesh import Mesh
from hpcai.parallel.zero import Piece, ShardedGradients, WholeGradients
from hpcai.xp import Array

State = Any
T = TypeVar("T")

Held = Literal["all", "shard", "copy", "own", "owner", "common", "counter"]


class Kept(NamedTuple):
    """One thing that outlives a step. Checkpoints, recovery, new ranks and the undoing of a step are each one loop over all of
    them.

    held: which of the data-parallel ranks have it, and so who writes it and what another rank, or another number of ranks, gets.

    all      the same on every rank, flat in the model's layout: each rank writes a chunk; a new rank takes it from another
    shard    this rank's `pieces` of a flat array; another number of ranks cuts the whole array anew
    copy     the pieces of rank `of`, for the time when that one is lost; not written
    own      every rank has its own, a run of the flat layout from `start`; another number of ranks gets the mean of all
    owner    a run from `start` of which this rank's share counts (combine.share): what it owes to the mean as an owner
    common   the same on every rank, in no layout: the first rank writes it; it is read where the layout is the same
    counter  a value in JSON, the same on every rank: `put` takes another one, or leaves its own where the kinds differ

    early: a step changes it before it is decided; a step that is repeated takes that back first.
    """

    name: str
    held: Held
    array: Array | None = None
    pieces: Sequence[Piece] = ()
    of: int = -1
    start: int = 0
    counter: Any = None
    put: Callable[[Any], None] | None = None
    early: bool = False


class Totals(NamedTuple):
    """What all ranks know when a step is *decided*: its gradients are summed, and the rest needs no further sums.

    A rank that knows them knows that all others have the sums of the gradients, even if one of them fails now (see
    elastic/recover.py). factor: what its gradients are still to be multiplied by when they are used; loss_sum has been, and
    grad_norm is when a strategy has settled it.
    """

    loss_sum: float
    targets: int
    grad_norm: float
    comm_s: float
    votes: Array
    factor: float = 1.0


class Place(NamedTuple):
    """A run of elements that this rank updates: its slice of the parameters, of the gradients, of optimizer state, and where it
    lies in the flat layout.
    """

    params: slice
    grads: slice
    state: slice
    flat: slice


@dataclass
class Buffers:
    """The arrays of one rank.

    params: what the optimizer updates, flat or a shard; stored: what other ranks and layers see of it (the same array, or 16 bits
    of it); computed: what layers compute with where that is neither; grads: as they are sent, flat or a shard; optimizer: its
    state by name; weights, gradients: both as layers see them; places: what this rank updates.
    """

    params: Array
    stored: Array
    computed: Array | None
    grads: Array
    optimizer: OptimizerState
    weights: Sequence[Params]
    gradients: WholeGradients | ShardedGradients
    places: list[Place]


class Setup(NamedTuple):
    """The inputs of a strategy. initial: the model's parameters, flat; dtype: of arithmetic; storage: the dtype in which
    parameters and gradients are stored and sent; buckets: slices of the gradient that are reduced together; units: the slices in
    which shards are sent; algorithm: of all-reduces; clip: the limit of the gradient's norm.
    """

    model: Model
    mesh: Mesh
    initial: Array
    dtype: np.dtype
    storage: np.dtype
    optimizer: Optimizer
    buckets: list[slice]
    units: list[slice]
    algorithm: str
    clip: float


class Strategy(NamedTuple):
    """How replicas of one model agree. All functions but `scale`, `update` and `kept` are collective.

    init(setup) -> state. scale(state) -> by what the loss's gradient is multiplied before backward. filled(state, i): bucket
    i of the gradients is full, and is reduced, in place. settle(state, totals) -> totals with the norm of the gradient, when
    all buckets and the loss are summed: the step is decided. update(state, totals, step, lr): what this rank updates, without
    other ranks. share(state): afterwards, what ranks give each other. kept(state): what outlives a step. restored(state):
    when that was filled from elsewhere, the rest follows from it.
    """

    init: Callable[[Setup], State]
    scale: Callable[[State], float]
    filled: Callable[[State, int], None]
    settle: Callable[[State, Totals], Totals]
    update: Callable[[State, Totals, int, float], None]
    share: Callable[[State], None]
    kept: Callable[[State], list[Kept]]
    restored: Callable[[State], None]


@dataclass
class Wrapped:
    """The state of a strategy around another."""

    inner: State

    @property
    def buffers(self) -> Buffers:
        """Return the buffers of the innermost strategy."""
        found: Buffers = self.inner.buffers
        return found


def part(state: State, kind: type[T]) -> T | None:
    """The state of that kind among those that are wrapped in each other; None where there is none."""
    while state is not None:
        if isinstance(state, kind):
            return state
        state = getattr(state, "inner", None)
    return None


def wrapping(inner: Strategy, make: Callable[[State, Setup], State]) -> Strategy:
    """Return a strategy that does what `inner` does, with a state around its own; replace the functions that differ."""
    return Strategy(
        init=lambda setup: make(inner.init(setup), setup),
        scale=lambda state: inner.scale(state.inner),
        filled=lambda state, i: inner.filled(state.inner, i),
        settle=lambda state, totals: inner.settle(state.inner, totals),
        update=lambda state, totals, step, lr: inner.update(state.inner, totals, step, lr),
        share=lambda state: inner.share(state.inner),
        kept=lambda state: inner.kept(state.inner),
        restored=lambda state: inner.restored(state.inner),
    )
