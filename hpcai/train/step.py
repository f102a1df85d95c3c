"""One step of synchronous SGD, whole, on one screen."""

from __future__ import annotations

import itertools
import math
from time import perf_counter

import numpy as np

from hpcai.data import sharding
from hpcai.errors import NonFiniteError
from hpcai.nn import losses, models
from hpcai.parallel.pipeline import MicroBatch
from hpcai.parallel.zero import GatheredParameters
from hpcai.strategies.strategy import Totals
from hpcai.train import grains
from hpcai.train.outcome import Report
from hpcai.train.replica import Replica
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
    """Run the step up to its last sum over ranks, which decides it. Collective."""
    targets = batch * (target.shape[1] if target.ndim == 2 and target.dtype.kind == "i" else 1)
    scale = replica.strategy.scale(replica.state) * (1.0 if replica.reduction == "sum" else 1.0 / targets)

    # Gradients are sums over samples, scaled by the global count, so that every sample has the same weight on any rank. If
    # classes have weights, the total weight of the targets is summed with the loss, and the update divides gradients by it.
    sums = grains.sum_into(replica, x, target, batch, scale, step) if replica.grain else None
    (loss_sum, *counted), comm_s = sums or _sum_into(replica, x, target, batch, scale, step)
    loss_sum, factor = _by_weight(replica, loss_sum, counted, targets)
    if not math.isfinite(loss_sum):
        raise _non_finite_loss(replica, x, step, loss_sum)
    totals = replica.strategy.settle(replica.state, Totals(loss_sum, targets, math.nan, comm_s, np.array(counted), factor))
    if replica.grain and sums is None and math.isfinite(totals.grad_norm):
        raise NonFiniteError(f"the gradient of a few samples (see --fixed-micro-batch) was not finite in step {step + 1}")
    return totals


def _by_weight(replica: Replica, loss_sum: float, counted: list[float], targets: int) -> tuple[float, float]:
    """Return the loss and the factor for gradients, both scaled for a mean by weight if classes have weights. The total weight
    of the batch's targets is then removed from the end of `counted`.
    """
    if replica.model.loss.weights is None:
        return loss_sum, 1.0
    weight = counted.pop()
    factor = targets / weight if weight else 0.0
    return loss_sum * factor, 1.0 if replica.reduction == "sum" else factor


def update(replica: Replica, totals: Totals, step: int, lr: float) -> None:
    """Update the parameters, or this rank's share of them, in a decided step. Not collective unless it raises."""
    replica.strategy.update(replica.state, totals, step, lr)
    replica.updated = True


def _share(replica: Replica) -> float:
    """Exchange the data that ranks need from each other after the update; return the seconds it took. Collective."""
    before = perf_counter()
    replica.strategy.share(replica.state)
    return perf_counter() - before


def _sum_into(replica: Replica, x: Array, target: Array, batch: int, scale: float, step: int) -> tuple[list[float], float]:
    """Set the replica's gradients to their sums over data-parallel ranks, or to this rank's shard of the sums. Collective.

    Returns: a list [loss, votes..., and the weight of the targets if classes have weights], and the seconds of communication
    after backward.
    """
    mesh, waiting = replica.mesh, list(range(len(replica.buckets)))
    total = np.array([0.0, *replica.votes, *[0.0] * (replica.model.loss.weights is not None)])

    def reduce_filled(layer: int) -> None:
        while waiting and replica.buckets[waiting[0]].start >= replica.starts[layer]:
            replica.carrier.start(_reduce, replica, waiting.pop(0))

    # Buckets are cut from the end of the gradient, as backward fills it, and are reduced as soon as they are full.
    eager = reduce_filled if mesh.only_dp else lambda layer: None
    first = sharding.first(batch, mesh.dp.rank, mesh.dp.size)
    try:
        with np.errstate(all="ignore"):  # a later check reports overflow
            micros = cut(x, target, first, replica.micro_batches)
            total[0], _ = replica.pipeline.run(replica.plan, micros, replica.weights, replica.gradients, scale, step, eager)
        before = perf_counter()
        for i in waiting:
            replica.carrier.start(_reduce, replica, i)
        total[0] *= mesh.tp.rank == 0  # tensor-parallel ranks all have the sum
        if mesh.tp.rank == mesh.pp.rank == 0:  # all ranks of a model have the same targets
            total[len(replica.votes) + 1 :] = losses.weights_of(replica.model.loss, target)
        replica.carrier.start(mesh.world.allreduce, total)
        replica.carrier.wait()
    except BaseException as error:
        replica.carrier.abandon(error)
        raise
    return total.tolist(), perf_counter() - before


def _reduce(replica: Replica, i: int) -> None:
    """Tell the strategy that bucket `i` of the gradients is full."""
    replica.strategy.filled(replica.state, i)


def cut(x: Array, target: Array, first: int, count: int) -> list[MicroBatch]:
    """Cut a rank's samples into `count` micro-batches; some may be empty. first: the first one's number in the global batch."""
    bounds = [len(x) * i // count for i in range(count + 1)]
    return [MicroBatch(x[a:b], target[a:b], first + a) for a, b in itertools.pairwise(bounds)]


def _non_finite_loss(replica: Replica, x: Array, step: int, loss: float) -> NonFiniteError:
    """Return an error that names the first layer, on any rank, whose output is not finite. If ranks have only parts of the model,
    the error names no layer. Collective.
    """
    message = f"the loss became {loss} in step {step + 1}"
    if not replica.mesh.only_dp or isinstance(replica.weights, GatheredParameters):
        return NonFiniteError(message)
    found = replica.mesh.world.allgather_object(
        models.first_non_finite(replica.model, replica.weights, models.caches(replica.model), x)
    )
    rank, where = next(((r, w) for r, w in enumerate(found) if w), (0, f"the loss ({replica.model.loss.name})"))
    return NonFiniteError(f"{message}; it was first produced by {where} on rank {rank}")
