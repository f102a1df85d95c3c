"""Synchronous SGD, with everything on every rank (stage 0) or with shards (ZeRO's stages 1 to 3; see parallel/zero.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcai import ops
from hpcai.arena import named_slot
from hpcai.errors import NonFiniteError
from hpcai.nn import models
from hpcai.nn.layers import Params
from hpcai.optim import clip
from hpcai.optim.optimizers import Optimizer
from hpcai.parallel import zero
from hpcai.parallel.zero import GatheredParameters, Piece, ShardedGradients, WholeGradients
from hpcai.strategies.strategy import Buffers, Kept, Place, Setup, Strategy, Totals
from hpcai.xp import Array


@dataclass
class Sharded:
    """shards: whether each data-parallel rank has its own; counted, counted_params: runs of `grads` and `params` that count for
    their norms; unscale: by what gradients are multiplied when they are used.
    """

    setup: Setup
    buffers: Buffers
    optimizer: Optimizer
    owned: list[Piece]
    shards: bool
    counted: list[slice]
    counted_params: list[slice]
    unscale: float = 1.0


def sharded(stage: int, left_out: Sequence[slice] = ()) -> Strategy:
    """Gradients are summed over data-parallel ranks, each updates what it owns, and all get all parameters.

    left_out: slices of the layout that another rank of the mesh has too, and counts for the norm of the gradient.
    """
    return Strategy(
        init=lambda setup: _init(setup, stage, left_out),
        scale=lambda state: 1.0,
        filled=(_summed, _scattered, _left_alone, _left_alone)[stage],
        settle=lambda state, totals: totals._replace(grad_norm=totals.factor * _norm(state, state.buffers.grads, state.counted)),
        update=update,
        share=(_nothing, _gathered, _gathered, _forgotten)[stage],
        kept=lambda state: _kept(state, stage),
        restored=(_nothing, _gathered, _gathered, _forgotten)[stage],
    )


def _init(setup: Setup, stage: int, left_out: Sequence[slice]) -> Sharded:
    model, dp, mixed = setup.model, setup.mesh.dp, setup.storage != setup.dtype
    whole = slice(0, model.layout.size)
    owned = zero.pieces(setup.units, dp) if stage else [Piece(whole, whole)]
    weights: Sequence[Params]
    computed = None
    if stage < 3:
        stored = dp.symmetric_empty(model.layout.size, setup.storage)
        stored[:] = setup.initial
        computed = np.empty(stored.size, setup.dtype) if mixed else None
        weights = models.per_layer(model, stored if computed is None else computed)
    else:
        weights = gathered = GatheredParameters(model, setup.units, dp, setup.initial, setup.storage)
        stored = gathered.shard
    gradients: WholeGradients | ShardedGradients
    if stage < 2:
        grads = dp.symmetric_empty(model.layout.size, setup.storage)
        grads[:] = 0
        gradients = WholeGradients(model, np.zeros(model.layout.size, setup.dtype) if mixed else grads)
    else:
        gradients = ShardedGradients(model, setup.units, dp, setup.dtype, setup.storage)
        grads = gradients.flat
    params = zero.scatter(setup.initial, owned) if mixed else stored
    state = setup.optimizer.init(zero.scatter(setup.initial, owned) if stage else params)
    flat = stage < 3 and not mixed
    places = [Place(p.flat if flat else p.shard, p.flat if stage < 2 else p.shard, p.shard, p.flat) for p in owned]
    buffers = Buffers(params, stored, computed, grads, state, weights, gradients, places)
    counted = _counted([(place.flat, place.grads) for place in places], left_out)
    counted_params = _counted([(place.flat, place.params) for place in places], left_out)
    return Sharded(setup, buffers, setup.optimizer, owned, stage > 0, counted, counted_params)


def _counted(places: list[tuple[slice, slice]], left_out: Sequence[slice]) -> list[slice]:
    """Return the parts of runs, each with its place in the flat layout, that are not excluded."""
    runs = []
    for flat, run in places:
        start, shift = flat.start, run.start - flat.start
        for hole in sorted(left_out, key=lambda one: one.start):
            if hole.start < flat.stop and hole.stop > start:
                runs.append(slice(start + shift, max(start, hole.start) + shift))
                start = min(hole.stop, flat.stop)
        runs.append(slice(start + shift, flat.stop + shift))
    return [run for run in runs if run.start < run.stop]


def _summed(state: Sharded, i: int) -> None:
    setup = state.setup
    setup.mesh.dp.allreduce(state.buffers.grads[setup.buckets[i]], algorithm=setup.algorithm)


def _scattered(state: Sharded, i: int) -> None:
    state.setup.mesh.dp.reduce_scatter(state.buffers.grads[state.setup.buckets[i]])


def _left_alone(state: Sharded, i: int) -> None:
    """ShardedGradients reduces its units while backward writes them."""


def _norm(state: Sharded, values: Array, counted: list[slice]) -> float:
    """The global norm of an array, whoever has which part of it."""
    mesh = state.setup.mesh
    square = np.array([sum(ops.sum_of_squares(wide(values[run])) for run in counted)], np.float64)
    if state.shards or not mesh.only_dp:
        mesh.world.allreduce(square)
        square /= 1 if state.shards else mesh.dp.size
    return math.sqrt(square[0]) if square[0] >= 0 else math.nan


def weight_norm(state: Sharded) -> float:
    """The global norm of the parameters, the same on every mesh but for rounding. Collective."""
    return _norm(state, state.buffers.params, state.counted_params)


def wide(x: Array) -> Array:
    """16-bit values as f32."""
    return ops.cast_into(np.empty(x.shape, np.float32), x) if x.dtype.itemsize == 2 else x


def update(state: Sharded, totals: Totals, step: int, lr: float) -> None:
    """This rank's part of the parameters. Not collective, unless it raises: NonFiniteError, on all ranks."""
    if not math.isfinite(totals.grad_norm):
        raise _non_finite_gradient(state, step)
    buffers = state.buffers
    factor = clip.factor(totals.grad_norm, state.setup.clip) * state.unscale * totals.factor
    for place in buffers.places:
        own = {name: array[place.state] for name, array in buffers.optimizer.items()}
        state.optimizer.update(buffers.params[place.params], wide(buffers.grads[place.grads]), own, step, lr, factor)


def _non_finite_gradient(state: Sharded, step: int) -> NonFiniteError:
    """Name the array, on whatever rank it is."""

    def broken() -> str | None:
        for place in state.buffers.places:
            values = wide(state.buffers.grads[place.grads])
            found = np.flatnonzero(~np.isfinite(values))
            if len(found):
                name = named_slot(state.setup.model.layout, place.flat.start + int(found[-1]))
                return f"the gradient of {name} became {values[found[-1]]}"
        return None

    told = (one for one in state.setup.mesh.world.allgather_object(broken()) if one)
    return NonFiniteError(f"{next(told, 'the gradient became infinite')} in step {step + 1}")


def _nothing(state: Sharded) -> None:
    """Every rank has updated all."""


def _gathered(state: Sharded) -> None:
    for unit in state.setup.units:
        state.setup.mesh.dp.allgather(state.buffers.stored[unit])


def _forgotten(state: Sharded) -> None:
    """Parameters are gathered when layers ask for them."""
    assert isinstance(state.buffers.weights, GatheredParameters)
    state.buffers.weights.forget()


def _kept(state: Sharded, stage: int) -> list[Kept]:
    buffers = state.buffers
    if not stage:
        return [Kept(name, "all", array) for name, array in named_arrays(buffers.params, buffers.optimizer)]
    pieces = {"params": [Piece(place.flat, place.params) for place in buffers.places]}
    return [
        Kept(name, "shard", array, pieces.get(name, state.owned))
        for name, array in named_arrays(buffers.params, buffers.optimizer)
    ]


def named_arrays(params: Array, optimizer: dict[str, Array]) -> list[tuple[str, Array]]:
    """Return the state's arrays with their names in checkpoints."""
    return [("params", params), *((f"optimizer.{name}", array) for name, array in optimizer.items())]


def memory_bytes(buffers: Buffers) -> dict[str, int]:
    """Bytes that this rank keeps from step to step: parameters and gradients as they are stored, optimizer state (with 16 bits
    the master copy too), and buffers that gather shards.
    """
    both = (buffers.weights, buffers.gradients)
    working = [part.sent.nbytes for part in both if isinstance(part, (GatheredParameters, ShardedGradients))]
    master = 0 if buffers.params is buffers.stored else buffers.params.nbytes
    return {
        "parameters": buffers.stored.nbytes,
        "gradients": buffers.grads.nbytes,
        "optimizer": sum(array.nbytes for array in buffers.optimizer.values()) + master,
        "buffers": sum(working),
    }
