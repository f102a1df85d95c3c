"""One rank's copy of everything that a step changes."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np

from hpcai import arena
from hpcai.arena import Layout
from hpcai.comm import cores
from hpcai.comm.background import Background, Foreground
from hpcai.comm.communicator import Communicator
from hpcai.data.dataset import Dataset
from hpcai.errors import UsageError
from hpcai.nn import models
from hpcai.nn.layers import Cache, Params
from hpcai.nn.models import Model
from hpcai.optim import optimizers, schedules
from hpcai.optim.optimizers import Optimizer, State
from hpcai.optim.schedules import Schedule
from hpcai.reduce.counting import Tally
from hpcai.reduce.named import named
from hpcai.reduce.policy import by_parts, policy
from hpcai.reduce.reducer import Reducer
from hpcai.train.config import Options
from hpcai.xp import DTYPES, Array

BUCKET_BYTES = 25 << 20
OVERLAPPED_BUCKET_BYTES = 1 << 20
"""Few buckets where all are reduced at the end; many where the first should be on its way early."""


@dataclass
class Replica:
    """Model, flat parameters and gradients with their views, optimizer state, and how and by whom gradients are reduced."""

    model: Model
    optimizer: Optimizer
    params: Array
    grads: Array
    state: State
    param_views: list[Params]
    grad_views: list[Params]
    caches: list[Cache]
    evaluation_caches: list[Cache]
    buckets: list[slice]
    gaps: list[slice]
    carrier: Background | Foreground
    reducers: list[Reducer]
    reducer_states: list[Any]
    tallies: list[Tally]
    grain: int
    reduction: str
    algorithm: str
    clip: float


def replica(options: Options, dataset: Dataset, comm: Communicator) -> Replica:
    """A fresh replica, the same on every rank."""
    model = build_model(options, dataset)
    optimizer = build_optimizer(options, model)
    dtype = DTYPES[options.dtype]
    params, grads = comm.empty(model.layout.size, dtype), comm.empty(model.layout.size, dtype)
    params[:] = models.initialise(model, options.seed, dtype)
    grads[:] = 0
    overlap = overlaps(options, comm)
    bucket_bytes = options.bucket_bytes or (OVERLAPPED_BUCKET_BYTES if overlap else BUCKET_BYTES)
    buckets = arena.buckets(model.layout, np.dtype(dtype).itemsize, bucket_bytes)
    reducers = build_reducers(options, model, buckets, comm.size)
    states = [reducer.init(grads[bucket]) for reducer, bucket in zip(reducers, buckets, strict=False)]
    by_grains = options.compress == "reproducible"
    if by_grains:
        cores.limit_threads(1)  # the same cut of a matrix product everywhere
    return Replica(
        model=model,
        optimizer=optimizer,
        params=params,
        grads=grads,
        state=optimizer.init(params),
        param_views=models.per_layer(model, params),
        grad_views=models.per_layer(model, grads),
        caches=[{} for _ in model.layers],
        evaluation_caches=[{} for _ in model.layers],
        buckets=buckets,
        gaps=arena.gaps(model.layout),
        carrier=Background() if overlap else Foreground(),
        reducers=reducers,
        reducer_states=[None] if by_grains else states,
        tallies=[Tally() for _ in buckets],
        grain=options.grain if by_grains else 0,
        reduction=options.reduction,
        algorithm=options.algorithm,
        clip=options.clip,
    )


def overlaps(options: Options, comm: Communicator) -> bool:
    """Whether gradients are reduced while backward computes the next: as the options say, else where ranks span nodes.

    On one node memory is the wire, and a thread would only take the core from backward.
    """
    if options.overlap == "never" or comm.size == 1:
        return False
    if not all(comm.exchange(comm.wire.serves_threads())):
        if options.overlap == "always":
            raise UsageError(f"--overlap always needs MPI_THREAD_SERIALIZED, which {comm.wire.describe()} does not offer here")
        return False
    return options.overlap == "always" or len(set(comm.exchange(comm.wire.node_color()))) > 1


def build_model(options: Options, dataset: Dataset) -> Model:
    """The model that the options name, for this data's shape and classes."""
    loss = models.default_loss(dataset.classes)
    if options.model == "softmax":
        return models.softmax(dataset.shape, dataset.outputs, loss)
    if options.model == "mlp":
        return models.mlp(dataset.shape, dataset.outputs, loss, options.hidden, options.activation)
    return models.cnn(dataset.shape, dataset.outputs, loss, options.channels)


def build_optimizer(options: Options, model: Model) -> Optimizer:
    """The optimizer that the options name; sgd with momentum is momentum."""
    name = "momentum" if options.optimizer == "sgd" and options.momentum else options.optimizer
    decay = options.weight_decay if options.weight_decay is not None else 0.01 if name in ("adamw", "lamb") else 0.0
    mu = 0.9 if options.momentum is None else options.momentum
    if name == "sgd":
        return optimizers.sgd(decay)
    if name in ("momentum", "nesterov"):
        return (optimizers.momentum if name == "momentum" else optimizers.nesterov)(mu, decay)
    if name == "lamb":
        return optimizers.lamb(model.layout, weight_decay=decay)
    return optimizers.adam(weight_decay=decay, decoupled=name == "adamw")


def build_reducers(options: Options, model: Model, buckets: list[slice], ranks: int) -> list[Reducer]:
    """One for each bucket, or none at all where gradients are summed as they are."""
    if options.compress in ("none", "reproducible"):
        return []
    return [_reducer(options, model.layout, bucket, ranks) for bucket in buckets]


def _reducer(options: Options, layout: Layout, bucket: slice, ranks: int) -> Reducer:
    """Of one bucket: neighbouring arrays of the same choice are a part, which is reduced in one go."""
    slots = [slot for slot in layout.slots if bucket.start <= slot.start and slot.stop <= bucket.stop]
    choices = [_choice(options, slot.name) for slot in slots]
    starts = [i for i in range(len(slots)) if i == 0 or choices[i] != choices[i - 1]]
    parts = []
    for first, after in zip(starts, [*starts[1:], len(slots)], strict=True):
        begin, end = slots[first].start, slots[after].start if after < len(slots) else bucket.stop
        places = [(slot.start - begin, slot.shape) for slot in slots[first:after]]
        reducer = named(choices[first], ranks, places, options.seed, not options.no_error_feedback)
        one = policy(reducer, options.compress_smallest, options.compress_warmup)
        parts.append((slice(begin - bucket.start, end - bucket.start), one))
    return parts[0][1] if len(parts) == 1 else by_parts(parts)


def _choice(options: Options, name: str) -> str:
    """How the array of that name travels."""
    return next((choice for pattern, choice in options.compress_layers if fnmatch(name, pattern)), options.compress)


def build_schedule(options: Options, steps: int) -> Schedule:
    """The learning rate's course over `steps` steps."""
    assert options.lr is not None
    if options.schedule == "cosine":
        return schedules.cosine(options.lr, steps, options.warmup)
    if options.schedule == "step":
        return schedules.step(options.lr, options.decay_steps, warmup=options.warmup)
    return schedules.constant(options.lr, options.warmup)
