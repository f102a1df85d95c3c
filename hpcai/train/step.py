"""One step of synchronous SGD, whole, on one screen."""

from __future__ import annotations

import itertools
import math
from time import perf_counter

import numpy as np

from hpcai import ops
from hpcai.arena import named_slot
from hpcai.data import sharding
from hpcai.errors import NonFiniteError
from hpcai.nn import models
from hpcai.optim import clip
from hpcai.parallel.pipeline import Micro
from hpcai.parallel.zero import GatheredParameters
from hpcai.train import grains
from hpcai.train.outcome import Report, Totals
from hpcai.train.replica import Replica, publish
from hpcai.xp import Array


def train_step(replica: Replica, x: Array, target: Array, batch: int, step: int, lr: float) -> Report:
    """Forward and backward on this rank's samples, sum gradients over data-parallel ranks, update the parameters.

    Args:   x, target: this rank's share of a global batch of `batch` samples, possibly empty; step: from 0; lr: learning rate.
    Raises: NonFiniteError, on all ranks alike, if the loss or a gradient is NaN or infinite.
    """
    started = perf_counter()
    totals = _decide(replica, x, target, batch, step)
    replica.decided, replica.updated = (step, totals), False
    update(replica, totals, step, lr)
    comm_s = totals.comm_s + _share(replica)
    return Report(totals.loss_sum, totals.targets, totals.grad_norm, perf_counter() - started, comm_s, totals.votes)


def _decide(replica: Replica, x: Array, target: Array, batch: int, step: int) -> Totals:
    """Everything up to the last sum over ranks."""
    dp, targets = replica.mesh.dp, batch * (target.shape[1] if target.ndim == 2 and target.dtype.kind == "i" else 1)
    scale = 1.0 if replica.reduction == "sum" else 1.0 / targets
    if replica.reducers:  # which take means
        scale *= dp.size
    if replica.half is not None:
        scale *= replica.half.scale

    # Gradients are sums over samples, scaled by the global count, so that every sample weighs the same whatever its rank.
    sums = grains.sum_into(replica, x, target, batch, scale, step) if replica.grain else None
    (loss_sum, *counted), comm_s = sums or _sum_into(replica, x, target, batch, scale, step)
    if not math.isfinite(loss_sum):
        raise _non_finite_loss(replica, x, step, loss_sum)

    if replica.backup is not None:
        replica.backup.exchange(replica.grads, replica.owned, whole=replica.zero < 2)
    norm = _norm(replica) / (1.0 if replica.half is None else replica.half.scale)
    if replica.grain and sums is None and math.isfinite(norm):
        raise NonFiniteError(f"the gradient of a few samples (see --fixed-micro-batch) was not finite in step {step + 1}")
    return Totals(loss_sum, targets, norm, comm_s, np.array(counted))


def update(replica: Replica, totals: Totals, step: int, lr: float) -> None:
    """Update the parameters, or this rank's share of them, in a decided step. Not collective unless it raises."""
    norm = totals.grad_norm
    unscale = 1.0 if replica.half is None else 1.0 / replica.half.scale
    if replica.half is None or replica.half.settle(math.isfinite(norm), step):
        if not math.isfinite(norm):
            raise _non_finite_gradient(replica, step)
        _update(replica, step, lr, clip.factor(norm, replica.clip) * unscale)
    replica.updated = True


def _sum_into(replica: Replica, x: Array, target: Array, batch: int, scale: float, step: int) -> tuple[list[float], float]:
    """replica.grads = the sum over data-parallel ranks, or this rank's shard of it; returns the loss with the votes, and the
    seconds that communication took after backward.
    """
    mesh, waiting = replica.mesh, list(range(len(replica.buckets))) * (replica.zero < 2)
    total = np.array([0.0, *replica.votes])

    def reduce_filled(layer: int) -> None:
        while waiting and replica.buckets[waiting[0]].start >= replica.starts[layer]:
            replica.carrier.start(_reduce, replica, waiting.pop(0))

    # Buckets are cut from the end of the gradient, as backward fills it, and are reduced as soon as they are full.
    eager = reduce_filled if mesh.only_dp else lambda layer: None
    first = sharding.first(batch, mesh.dp.rank, mesh.dp.size)
    try:
        with np.errstate(all="ignore"):  # overflow is an error of its own below
            micros = cut(x, target, first, replica.micro_batches)
            total[0], _ = replica.pipeline.run(replica.plan, micros, replica.weights, replica.gradients, scale, step, eager)

        before = perf_counter()
        if replica.borrowed is not None and replica.zero:  # while the gradients are whole
            replica.borrowed.comm.allreduce(replica.gradients.flat[replica.borrowed.where])
        for i in waiting:
            replica.carrier.start(_reduce, replica, i)
        total[0] *= mesh.tp.rank == 0  # tensor-parallel ranks all have the sum
        replica.carrier.start(mesh.world.allreduce, total)
        replica.carrier.wait()
    except BaseException as error:
        replica.carrier.abandon(error)
        raise
    if replica.borrowed is not None and not replica.zero:  # last, so that both copies get the same bits
        replica.borrowed.comm.allreduce(replica.grads[replica.borrowed.where])
    if replica.reducers:  # what a codec made of the elements that belong to no parameter
        for gap in replica.gaps:
            replica.grads[gap] = 0
    return total.tolist(), perf_counter() - before


def cut(x: Array, target: Array, first: int, count: int) -> list[Micro]:
    """A rank's samples, the first being number `first` of the global batch, as so many micro-batches; some may be empty."""
    bounds = [len(x) * i // count for i in range(count + 1)]
    return [Micro(x[a:b], target[a:b], first + a) for a, b in itertools.pairwise(bounds)]


def _reduce(replica: Replica, i: int) -> None:
    """Sum bucket `i` over data-parallel ranks, in place: as it is, as its reducer does it, or this rank's chunk alone."""
    bucket, comm = replica.grads[replica.buckets[i]], replica.mesh.dp
    if replica.half is not None:
        ops.cast_into(bucket, replica.gradients.flat[replica.buckets[i]])
    if replica.reducers:
        with replica.tallies[i].of(comm, replica.algorithm) as counted:
            mean, _, replica.reducer_states[i] = replica.reducers[i].reduce(bucket, counted, replica.reducer_states[i])
        if mean is not bucket:
            bucket[:] = mean
    elif replica.zero:
        comm.reduce_scatter(bucket)
    else:
        comm.allreduce(bucket, algorithm=replica.algorithm)


def _norm(replica: Replica) -> float:
    """The norm of the whole gradient, whoever has which part of it."""
    square = np.array([sum(ops.sum_of_squares(_wide(replica.grads[run])) for run in replica.counted)], np.float64)
    if replica.zero or not replica.mesh.only_dp:
        replica.mesh.world.allreduce(square)
        square /= 1 if replica.zero else replica.mesh.dp.size
    return math.sqrt(square[0]) if square[0] >= 0 else math.nan


def _wide(x: Array) -> Array:
    """16-bit values as f32."""
    return ops.cast_into(np.empty(x.shape, np.float32), x) if x.dtype.itemsize == 2 else x


def _non_finite_gradient(replica: Replica, step: int) -> NonFiniteError:
    """Name the array, on whatever rank it is."""

    def broken() -> str | None:
        for piece in replica.owned:
            values = _wide(replica.grads[piece.flat if replica.zero < 2 else piece.shard])
            places = np.flatnonzero(~np.isfinite(values))
            if len(places):
                name = named_slot(replica.model.layout, piece.flat.start + int(places[-1]))
                return f"the gradient of {name} became {values[places[-1]]}"
        return None

    found = (one for one in replica.mesh.world.allgather_object(broken()) if one)
    return NonFiniteError(f"{next(found, 'the gradient became infinite')} in step {step + 1}")


def _update(replica: Replica, step: int, lr: float, factor: float) -> None:
    """Update the parameters, or this rank's share and the one that it keeps a copy of."""
    whole = replica.zero < 3 and replica.half is None
    for piece in replica.owned:
        params = replica.params[piece.flat if whole else piece.shard]
        grads = _wide(replica.grads[piece.flat if replica.zero < 2 else piece.shard])
        state = {name: array[piece.shard] for name, array in replica.state.items()}
        replica.optimizer.update(params, grads, state, step, lr, factor)
    if replica.backup is not None:
        replica.backup.update(replica.params, replica.optimizer, step, lr, factor)


def _share(replica: Replica) -> float:
    """Give the others this rank's share of the updated parameters and take theirs; returns the seconds that it took."""
    before = perf_counter()
    if replica.half is not None:
        publish(replica)
    elif isinstance(replica.weights, GatheredParameters):
        replica.weights.forget()
    elif replica.zero:
        for unit in replica.units:
            replica.mesh.dp.allgather(replica.params[unit])
    if replica.borrowed is not None and replica.zero:  # shards of the two copies were summed in different orders
        replica.borrowed.comm.broadcast((replica.params if replica.half is None else replica.half.stored)[replica.borrowed.where])
    return perf_counter() - before


def _non_finite_loss(replica: Replica, x: Array, step: int, loss: float) -> NonFiniteError:
    """Look for the first layer, on any rank, whose output is not finite; where ranks have parts of the model, just say it."""
    message = f"the loss became {loss} in step {step + 1}"
    if not replica.mesh.only_dp or isinstance(replica.weights, GatheredParameters):
        return NonFiniteError(message)
    found = replica.mesh.world.allgather_object(
        models.first_non_finite(replica.model, replica.weights, models.caches(replica.model), x)
    )
    rank, where = next(((r, w) for r, w in enumerate(found) if w), (0, f"the loss ({replica.model.loss.name})"))
    return NonFiniteError(f"{message}; it was first produced by {where} on rank {rank}")
