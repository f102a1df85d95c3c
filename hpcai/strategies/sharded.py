"""Synchronous SGD, with all state on every rank (stage 0) or in shards (stages 1 to 3 of ZeRO; see parallel/zero.py)."""

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
    """The state of `sharded`.

    owned: the pieces that this rank updates; shards: whether data-parallel ranks own different pieces; counted, counted_params:
    the runs of `grads` and `params` that this rank counts in global norms; unscale: a factor of the gradients in the update.
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
    """Return a strategy that sums gradients over data-parallel ranks. Each rank updates its pieces, and all get all parameters.

    stage: 0 for no shards, or ZeRO's 1 to 3. left_out: slices of the layout that another rank of the mesh also has; that rank
    alone counts them in global norms.
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
    """Return the parts of runs that are not left out. places: for each run its slice of the flat layout, and the run."""
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
    """Do nothing: ShardedGradients reduces its units while backward writes them."""


def _norm(state: Sharded, values: Array, counted: list[slice]) -> float:
    """Return the global norm of an array that ranks may hold in parts. Collective, unless all ranks hold all of it."""
    mesh = state.setup.mesh
    square = np.array([sum(ops.sum_of_squares(wide(values[run])) for run in counted)], np.float64)
    if state.shards or not mesh.only_dp:
        mesh.world.allreduce(square)
        square /= 1 if state.shards else mesh.dp.size
    return math.sqrt(square[0]) if square[0] >= 0 else math.nan


def weight_norm(state: Sharded) -> float:
    """Return the global norm of the parameters, equal on all meshes up to rounding. Collective."""
    return _norm(state, state.buffers.params, state.counted_params)


def wide(x: Array) -> Array:
    """Return 16-bit values as a new f32 array, and any other array as it is."""
    return ops.cast_into(np.empty(x.shape, np.float32), x) if x.dtype.itemsize == 2 else x


def update(state: Sharded, totals: Totals, step: int, lr: float) -> None:
    """Update this rank's part of the parameters. Not collective, unless the gradient's norm is not finite.

    Raises: NonFiniteError, on all ranks, which names the parameter.
    """
    if not math.isfinite(totals.grad_norm):
        raise _non_finite_gradient(state, step)
    buffers = state.buffers
    factor = clip.factor(totals.grad_norm, state.setup.clip) * state.unscale * totals.factor
    for place in buffers.places:
        own = {name: array[place.state] for name, array in buffers.optimizer.items()}
        state.optimizer.update(buffers.params[place.params], wide(buffers.grads[place.grads]), own, step, lr, factor)


def _non_finite_gradient(state: Sharded, step: int) -> NonFiniteError:
    """Return the error that names a parameter whose gradient is not finite, on whichever rank it is. Collective."""

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
    """Do nothing: every rank has updated all parameters."""


def _gathered(state: Sharded) -> None:
    for unit in state.setup.units:
        state.setup.mesh.dp.allgather(state.buffers.stored[unit])


def _forgotten(state: Sharded) -> None:
    """Forget gathered parameters: they are gathered again when layers ask for them."""
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
    """Return the parameters and the arrays of optimizer state, with their names in checkpoints."""
    return [("params", params), *((f"optimizer.{name}", array) for name, array in optimizer.items())]


def memory_bytes(buffers: Buffers) -> dict[str, int]:
    """Return the bytes that this rank keeps between steps: parameters and gradients as stored, optimizer state (with 16-bit
    storage also the master copy), and the buffers in which units are gathered or reduced.
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
