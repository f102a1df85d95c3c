"""Gradients that are bit-identical for any number of ranks, computed by grains.

A *grain* is a few neighbouring samples of the global batch. Grains are the same for any number of ranks. Forward and backward run
on one grain at a time, so that no floating-point sum depends on the division among ranks. The gradients of grains are summed as
integers (see reduce/reproducible.py). The unit follows from the largest magnitude in the previous step. If that unit does not
fit, all ranks compute the step again.
"""

from __future__ import annotations

import math
from time import perf_counter

import numpy as np

from hpcai.data import sharding
from hpcai.nn import models
from hpcai.nn.losses import weights_of
from hpcai.nn.sequence import BatchPosition
from hpcai.ops import integers
from hpcai.reduce import reproducible
from hpcai.strategies.reproducible import Reproducible
from hpcai.strategies.strategy import part
from hpcai.train.replica import Replica
from hpcai.xp import Array

MARGIN = 8
"""From step to step the largest magnitude may grow by up to 2**8, or shrink by up to 2**16, before a step is computed again."""


def sum_into(replica: Replica, x: Array, target: Array, batch: int, scale: float, step: int) -> tuple[list[float], float] | None:
    """Set the replica's gradients to their sums over all grains of all ranks. Collective.

    x, target: this rank's whole grains of a global batch of `batch` samples.

    Returns: a list [loss, votes..., and the weight of the targets if classes have weights], and the seconds of communication;
    None if a gradient is not finite.
    """
    comm, kept = replica.mesh.dp, part(replica.state, Reproducible)
    assert kept is not None
    first = sharding.first(batch, comm.rank, comm.size, replica.grain)
    while True:
        exponent = kept.exponent
        guess = 0 if exponent is None else exponent
        sums, losses, largest = _pass(
            replica, x, target, scale, BatchPosition(step, first), reproducible.unit_for(guess), 2.0**guess
        )
        before = perf_counter()
        largest = float(comm.allreduce(np.array([largest]), "max")[0])
        if not math.isfinite(largest):
            return None
        needed = reproducible.exponent_of(largest) + MARGIN
        kept.exponent = needed
        if largest < 2.0**guess and (largest == 0 or needed > guess - 2 * MARGIN):
            break
    comm.allreduce(sums, algorithm=replica.algorithm)
    integers.from_fixed_into(replica.buffers.grads, sums, reproducible.unit_for(guess))
    grains = [target[start : start + replica.grain] for start in range(0, len(x), replica.grain)]
    weights = [weight for grain in grains for weight in weights_of(replica.model.loss, grain)]
    every = comm.allgather_object((losses, replica.votes.copy(), weights))
    counted = np.sum([cast for _, cast, _ in every], axis=0).tolist()
    if replica.model.loss.weights is not None:
        counted.append(math.fsum(weight for *_, some in every for weight in some))
    return [math.fsum(loss for some, *_ in every for loss in some), *counted], perf_counter() - before


def _pass(
    replica: Replica, x: Array, target: Array, scale: float, moment: BatchPosition, unit: int, limit: float
) -> tuple[Array, list[float], float]:
    """Run forward and backward over all grains. Return sums in units of 2**unit, losses, and a gradient's largest magnitude.

    A grain's gradients that reach the limit are not added; the step is then computed again, and only the magnitude counts.
    """
    sums, losses, largest = np.zeros(replica.buffers.grads.size, np.int64), [], 0.0
    caches = models.caches(replica.model)
    for start in range(0, len(x), replica.grain):
        samples = slice(start, start + replica.grain)
        with np.errstate(all="ignore"):
            here = moment._replace(first=moment.first + start)
            y = models.forward(replica.model, replica.weights, caches, x[samples], moment=here)
            dy = np.empty_like(y)
            loss, _ = replica.model.loss.evaluate(dy, y, target[samples], scale)
            replica.gradients.begin()
            models.backward(replica.model, replica.weights, replica.gradients, caches, dy, replica.gradients.filled)
        size = reproducible.largest_magnitude(replica.buffers.grads)
        losses.append(float(loss))
        largest = size if math.isnan(size) else max(largest, size)
        if math.isnan(largest):
            break
        if largest < limit:
            integers.add_fixed_into(sums, replica.buffers.grads, unit)
    return sums, losses, largest
