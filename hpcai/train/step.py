"""One step of synchronous data-parallel SGD, whole, on one screen."""

from __future__ import annotations

import math
from time import perf_counter
from typing import NamedTuple

import numpy as np

from hpcai.arena import named_slot
from hpcai.comm.communicator import Communicator
from hpcai.errors import NonFiniteError
from hpcai.nn import models
from hpcai.optim import clip
from hpcai.train import grains
from hpcai.train.replica import Replica
from hpcai.xp import Array


class Report(NamedTuple):
    """What one step did, equal on all ranks except for the times: sums over the global batch, gradient norm, seconds."""

    loss_sum: float
    samples: int
    grad_norm: float
    step_s: float
    comm_s: float


def train_step(replica: Replica, comm: Communicator, x: Array, target: Array, batch: int, step: int, lr: float) -> Report:
    """Forward and backward on this rank's samples, sum gradients over all ranks, update the parameters.

    Args:   x, target: this rank's share of a global batch of `batch` samples, possibly empty; step: from 0; lr: learning rate.
    Raises: NonFiniteError, on all ranks alike, if the loss or a gradient is NaN or infinite.
    """
    started = perf_counter()
    model, params, grads = replica.model, replica.params, replica.grads
    scale = 1.0 if replica.reduction == "sum" else 1.0 / batch
    if replica.reducers:  # which take means
        scale *= comm.size

    # Gradients are sums over samples, scaled by the global count, so that every sample weighs the same whatever its rank.
    sums = grains.sum_into(replica, comm, x, target, scale) if replica.grain else None
    loss_sum, comm_s = sums or _sum_into(replica, comm, x, target, scale)
    if not math.isfinite(loss_sum):
        raise _non_finite_loss(replica, comm, x, step, loss_sum)

    norm = clip.norm(grads)
    if not math.isfinite(norm):
        where = named_slot(model.layout, int(np.flatnonzero(~np.isfinite(grads))[-1]))
        raise NonFiniteError(f"the gradient of {where} became {grads[~np.isfinite(grads)][-1]} in step {step + 1}")
    if replica.grain and sums is None:
        raise NonFiniteError(f"the gradient of a few samples (see --grain) was not finite in step {step + 1}")
    replica.optimizer.update(params, grads, replica.state, step + 1, lr, clip.factor(norm, replica.clip))
    return Report(loss_sum, batch, norm, perf_counter() - started, comm_s)


def _sum_into(replica: Replica, comm: Communicator, x: Array, target: Array, scale: float) -> tuple[float, float]:
    """replica.grads = the sum over all ranks; returns the loss and the seconds that communication took after backward."""
    model, total, waiting = replica.model, np.zeros(1), list(range(len(replica.buckets)))

    def reduce_filled(start: int) -> None:
        while waiting and replica.buckets[waiting[0]].start >= start:
            replica.carrier.start(_reduce, replica, comm, waiting.pop(0))

    # Buckets are cut from the end of the gradient, as backward fills it, and are reduced as soon as they are full.
    with np.errstate(all="ignore"):  # overflow is an error of its own below
        y = models.forward(model, replica.param_views, replica.caches, x)
        dy = np.empty_like(y)
        total[0], _ = model.loss.evaluate(dy, y, target, scale)
        models.backward(model, replica.param_views, replica.grad_views, replica.caches, dy, reduce_filled)

    before = perf_counter()
    replica.carrier.start(comm.allreduce, total)
    replica.carrier.wait()
    if replica.reducers:  # what a codec made of the elements that belong to no parameter
        for gap in replica.gaps:
            replica.grads[gap] = 0
    return float(total[0]), perf_counter() - before


def _reduce(replica: Replica, comm: Communicator, i: int) -> None:
    """Sum bucket `i` over all ranks, in place: as it is, or as its reducer does it."""
    bucket = replica.grads[replica.buckets[i]]
    if not replica.reducers:
        comm.allreduce(bucket, algorithm=replica.algorithm)
    else:
        with replica.tallies[i].of(comm, replica.algorithm) as counted:
            mean, _, replica.reducer_states[i] = replica.reducers[i].reduce(bucket, counted, replica.reducer_states[i])
        if mean is not bucket:
            bucket[:] = mean


def _non_finite_loss(replica: Replica, comm: Communicator, x: Array, step: int, loss: float) -> NonFiniteError:
    """Look for the first layer, on any rank, whose output is not finite."""
    found = comm.exchange(models.first_non_finite(replica.model, replica.param_views, replica.caches, x))
    rank, where = next(((r, w) for r, w in enumerate(found) if w), (0, f"the loss ({replica.model.loss.name})"))
    return NonFiniteError(f"the loss became {loss} in step {step + 1}; it was first produced by {where} on rank {rank}")
