"""The protocols Strategy and Kept: how replicas agree, and what outlives a step.

A step computes gradients. The strategy decides how they are reduced, what this rank updates, and what ranks share afterwards.
Wrappers return the same type, so strategies compose: `redundant(compressed(sharded(1), reducers), whole=True)`.
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
    """An array or a counter that outlives a step. Checkpoints, recovery, new ranks and undoing a step each loop over all of them.

    held: which data-parallel ranks have the array, and so which rank writes it and what a new rank or another number of ranks
    gets.

    all      equal on every rank, flat in the model's layout: each rank writes a chunk; a new rank copies it from another rank
    shard    this rank's `pieces` of a flat array; another number of ranks cuts the whole array anew
    copy     the pieces of rank `of`, used if rank `of` is lost; not written
    own      different on every rank, a run of the flat layout from `start`; another number of ranks gets the mean over ranks
    owner    a run from `start` of which only this rank's share counts (combine.share): the residual of the means it owns
    common   equal on every rank, in no layout: the first rank writes it; it is read only into the same layout
    counter  a JSON value, equal on every rank: `put` replaces the state's value, but keeps it if the kinds differ

    early: a step changes the array or counter before the step is decided; a repeated step undoes that change first.
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
    """The totals that all ranks know when a step is *decided*: its gradients are summed, and no further sums are needed.

    A rank with the totals knows that all other ranks have the summed gradients, even if one of them fails now (see
    elastic/recover.py). targets: their number in the global batch; comm_s: seconds of communication; factor: by which the update
    multiplies gradients. loss_sum includes the factor already, grad_norm after `settle`.
    """

    loss_sum: float
    targets: int
    grad_norm: float
    comm_s: float
    votes: Array
    factor: float = 1.0


class Place(NamedTuple):
    """A run of elements that this rank updates, as a slice of `Buffers.params`, of `grads`, of optimizer state, and of the flat
    layout.
    """

    params: slice
    grads: slice
    state: slice
    flat: slice


@dataclass
class Buffers:
    """The arrays of one rank.

    params: the parameters that the optimizer updates, flat or a shard; stored: the parameters that ranks send and layers read
    (the same array, or a 16-bit copy); computed: the parameters that layers compute with, if they are a third array; grads: the
    gradients as sent, flat or a shard; optimizer: optimizer state by name; weights, gradients: the parameters and gradients as
    layers access them; places: the runs that this rank updates.
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
    """The inputs of a strategy.

    initial: the model's initial parameters, flat; dtype: of arithmetic; storage: the dtype in which parameters and gradients are
    stored and sent; buckets: slices of the gradient that are reduced together; units: slices of the layout of which each rank
    owns a chunk; algorithm: of all-reduces; clip: the limit of the gradient's norm (0: none).
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

    init(setup) returns the state. scale(state) returns the factor of the loss's gradient before backward. filled(state, i)
    reduces bucket i of the gradients in place, once the bucket is full. settle(state, totals) is called when all buckets and the
    loss are summed, so that the step is decided; it returns the totals with the norm of the gradient. update(state, totals,
    step, lr) updates this rank's part, without other ranks. share(state) then exchanges updated parameters. kept(state) lists
    what outlives a step. restored(state) derives the rest of the state after the kept arrays were filled from elsewhere.
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
    """The state of a strategy that wraps another one. inner: the state of the wrapped strategy."""

    inner: State

    @property
    def buffers(self) -> Buffers:
        """Return the buffers of the innermost strategy."""
        found: Buffers = self.inner.buffers
        return found


def part(state: State, kind: type[T]) -> T | None:
    """Return the state of class `kind` among `state` and the states that it wraps; None if there is none."""
    while state is not None:
        if isinstance(state, kind):
            return state
        state = getattr(state, "inner", None)
    return None


def wrapping(inner: Strategy, make: Callable[[State, Setup], State]) -> Strategy:
    """Return a strategy that does what `inner` does, with its state wrapped by `make`. Callers replace functions that differ."""
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
