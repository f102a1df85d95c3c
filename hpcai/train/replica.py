"""One rank's part of everything that a step changes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, NamedTuple

import numpy as np

from hpcai import arena
from hpcai.arena import Layout
from hpcai.comm import cores
from hpcai.comm.background import Background, Foreground
from hpcai.comm.communicator import Communicator
from hpcai.data.dataset import Dataset
from hpcai.errors import UsageError
from hpcai.nn import gpt, models
from hpcai.nn.layers import Params
from hpcai.nn.models import Model
from hpcai.nn.split import WHOLE, Split
from hpcai.optim import optimizers, schedules
from hpcai.optim.optimizers import Optimizer, State
from hpcai.optim.schedules import Schedule
from hpcai.parallel import mesh as meshes
from hpcai.parallel import schedules as plans
from hpcai.parallel import stages as cuts
from hpcai.parallel import tensor, zero
from hpcai.parallel.mesh import Mesh
from hpcai.parallel.pipeline import Pipeline, Stages
from hpcai.parallel.schedules import Plan
from hpcai.parallel.zero import GatheredParameters, Piece, ShardedGradients, WholeGradients
from hpcai.reduce.counting import Tally
from hpcai.reduce.named import named
from hpcai.reduce.policy import by_parts, policy
from hpcai.reduce.reducer import Reducer
from hpcai.train import config, precision
from hpcai.train.config import Options
from hpcai.train.precision import Half
from hpcai.xp import DTYPES, Array

BUCKET_BYTES = 25 << 20
OVERLAPPED_BUCKET_BYTES = 1 << 20
"""Few buckets where all are reduced at the end; many where the first should be on its way early."""

UNITS, SMALLEST_UNIT_BYTES = 16, 1 << 18
"""Shards of gradients and parameters travel in about so many units, but in none smaller than this."""


class Borrowed(NamedTuple):
    """A slice of the parameters that is also on another pipeline stage, and a communicator of the two."""

    comm: Communicator
    where: slice


@dataclass
class Replica:
    """This rank's part of the model: where it stands in the mesh, its parameters, gradients and optimizer state or its shards of
    them, and how and by whom gradients are reduced.
    """

    mesh: Mesh
    whole: Model
    model: Model
    pipeline: Pipeline
    evaluation: Pipeline
    plan: Plan
    optimizer: Optimizer
    zero: int
    units: list[slice]
    owned: list[Piece]
    params: Array
    grads: Array
    state: State
    half: Half | None
    weights: Sequence[Params]
    gradients: WholeGradients | ShardedGradients
    counted: list[slice]
    borrowed: Borrowed | None
    starts: list[int]
    buckets: list[slice]
    gaps: list[slice]
    carrier: Background | Foreground
    reducers: list[Reducer]
    reducer_states: list[Any]
    tallies: list[Tally]
    grain: int
    micro_batches: int
    chunks: int
    reduction: str
    algorithm: str
    clip: float


def replica(options: Options, dataset: Dataset, comm: Communicator) -> Replica:
    """A fresh replica, all of them together the same model on any mesh. Collective.

    Raises: UsageError where model and mesh do not fit.
    """
    mesh = build_mesh(options, comm)
    whole = build_model(options, dataset, tensor.split(mesh.tp))
    storage = np.dtype(DTYPES[options.dtype])
    dtype = np.dtype(np.float32) if options.dtype in precision.STORAGE else storage
    if storage != dtype:
        whole = precision.rounding(whole, storage)
    model, stages = build_stages(options, dataset, whole, mesh, dtype)
    borrowed = _borrowed(model, whole, mesh)
    optimizer = build_optimizer(options, model)
    overlap = overlaps(options, mesh)
    bucket_bytes = options.bucket_bytes or (OVERLAPPED_BUCKET_BYTES if overlap else BUCKET_BYTES)
    buckets = arena.buckets(model.layout, dtype.itemsize, bucket_bytes)
    unit_bytes = options.bucket_bytes or max(SMALLEST_UNIT_BYTES, storage.itemsize * model.layout.size // UNITS)
    units = zero.units(model, storage.itemsize, unit_bytes) if options.zero > 1 else buckets
    owned = zero.pieces(units, mesh.dp) if options.zero else [Piece(slice(0, model.layout.size), slice(0, model.layout.size))]

    initial = models.initialise(model, options.seed, dtype)
    weights: Sequence[Params]
    half = None
    if options.zero < 3:
        stored = mesh.dp.empty(model.layout.size, storage)
        stored[:] = initial
        half = precision.half(stored, whole=True) if storage != dtype else None
        weights = models.per_layer(model, stored if half is None else half.computed)
    else:
        weights = gathered = GatheredParameters(model, units, mesh.dp, initial, storage)
        stored = gathered.shard
        half = precision.half(stored, whole=False) if storage != dtype else None
    params = stored if half is None else zero.scatter(initial, owned)
    gradients: WholeGradients | ShardedGradients
    if options.zero < 2:
        grads = mesh.dp.empty(model.layout.size, storage)
        grads[:] = 0
        gradients = WholeGradients(model, grads if half is None else np.zeros(model.layout.size, dtype))
    else:
        gradients = ShardedGradients(model, units, mesh.dp, dtype, storage)
        grads = gradients.flat

    reducers = build_reducers(options, model, buckets, mesh.dp.size)
    states = [reducer.init(grads[bucket]) for reducer, bucket in zip(reducers, buckets, strict=False)]
    by_grains = options.compress == "reproducible"
    if by_grains:
        cores.limit_threads(1)  # the same cut of a matrix product everywhere
    chunks = options.chunks or 1
    mine = Replica(
        mesh=mesh,
        whole=whole,
        model=model,
        pipeline=Pipeline(stages, mesh.pp, dtype),
        evaluation=Pipeline(stages._replace(recompute=None), mesh.pp, dtype),
        plan=plans.plan(options.pipeline, mesh.pp.size, options.micro_batches, chunks)
        if mesh.pp.size > 1
        else plans.one_f_one_b(1, options.micro_batches),
        optimizer=optimizer,
        zero=options.zero,
        units=units,
        owned=owned,
        params=params,
        grads=grads,
        state=optimizer.init(zero.scatter(initial, owned) if options.zero else params),
        half=half,
        weights=weights,
        gradients=gradients,
        counted=_counted(model, borrowed if mesh.pp.rank else None, mesh, owned, options.zero),
        borrowed=borrowed,
        starts=models.starts(model),
        buckets=buckets,
        gaps=arena.gaps(model.layout),
        carrier=Background() if overlap else Foreground(),
        reducers=reducers,
        reducer_states=[None] if by_grains else states,
        tallies=[Tally() for _ in buckets],
        grain=options.grain if by_grains else 0,
        micro_batches=options.micro_batches,
        chunks=chunks,
        reduction=options.reduction,
        algorithm=options.algorithm,
        clip=options.clip,
    )
    if half is not None:
        precision.publish(mine)
    return mine


def memory_bytes(mine: Replica) -> dict[str, int]:
    """Bytes that this rank keeps from step to step: parameters and gradients as they are stored, optimizer state (with 16 bits
    the master copy too), and buffers that gather shards.
    """
    both = (mine.weights, mine.gradients)
    working = [part.sent.nbytes for part in both if isinstance(part, (GatheredParameters, ShardedGradients))]
    half = mine.half
    return {
        "parameters": mine.params.nbytes if half is None else half.stored.nbytes,
        "gradients": mine.grads.nbytes,
        "optimizer": sum(array.nbytes for array in mine.state.values()) + (0 if half is None else mine.params.nbytes),
        "buffers": sum(working),
    }


def build_mesh(options: Options, comm: Communicator) -> Mesh:
    """The mesh that the options name, if the rest of them can be on it. Collective."""
    axes = meshes.sizes(options.mesh, comm.size)
    config.check_mesh(options, *axes)
    return meshes.mesh(comm, axes)


def gpt_shape(options: Options) -> gpt.Shape:
    """The gpt that the options describe, over bytes."""
    o = options
    return gpt.Shape(o.layers, o.width, o.heads, o.context, norm=o.norm, tied=o.tied, dropout=o.dropout)


def check(options: Options, ranks: int) -> None:
    """Raise UsageError for what cannot be on so many ranks, as far as the options tell without the data."""
    axes = meshes.sizes(options.mesh, ranks)
    config.check_mesh(options, *axes)
    if options.model == "gpt":
        gpt.check(gpt_shape(options), axes.tp)
        cuts.cut([1.0] * (2 * options.layers + 2), axes.pp * (options.chunks or 1))
    if axes.pp > 1:
        plans.plan(options.pipeline, axes.pp, options.micro_batches, options.chunks or 1)


def build_stages(options: Options, dataset: Dataset, whole: Model, mesh: Mesh, dtype: np.dtype) -> tuple[Model, Stages]:
    """This rank's layers: all, or those of its pipeline stages, cut by the seconds that they take on rank 0. Collective."""
    ranks, chunks = mesh.pp.size, options.chunks or 1
    if ranks == 1:
        kept = tuple(cuts.groups(whole)) if options.recompute else None
        return whole, Stages(whole, (slice(0, len(whole.layers)),), ((),), ((),), kept)
    cuts.cut([1.0] * len(cuts.groups(whole)), ranks * chunks)
    plans.plan(options.pipeline, ranks, options.micro_batches, chunks)
    samples = max(1, options.batch // (mesh.dp.size * options.micro_batches))
    groups = cuts.measure(whole, np.zeros((samples, *dataset.shape), np.int64 if dataset.context else dtype), dtype)
    spans = cuts.cut(mesh.world.exchange([group.seconds for group in groups])[0], ranks * chunks)
    mine = [groups[span] for span in spans[mesh.pp.rank :: ranks]]
    layers = [slice(some[0].span.start, some[-1].span.stop) for some in mine]
    model = models.parts(whole, layers)
    ends = [0, *itertools.accumulate(span.stop - span.start for span in layers)]
    return model, Stages(
        model,
        tuple(slice(a, b) for a, b in itertools.pairwise(ends)),
        tuple(some[0].entering for some in mine),
        tuple(some[-1].leaving for some in mine),
        tuple(cuts.groups(model)) if options.recompute else None,
    )


def _borrowed(model: Model, whole: Model, mesh: Mesh) -> Borrowed | None:
    """Where the first and the last stage both have the embedding. Collective."""
    owner = next((layer.shares for layer in whole.layers if layer.shares), None)
    if owner is None or mesh.pp.size == 1:
        return None
    comm = mesh.pp.split(0 if mesh.pp.rank in (0, mesh.pp.size - 1) else None)
    if comm is None:
        return None
    name = models.borrowed(model, whole) or f"{owner}.token"
    slot = next(slot for slot in model.layout.slots if slot.name == name)
    return Borrowed(comm, slice(slot.start, slot.stop))


def _counted(model: Model, borrowed: Borrowed | None, mesh: Mesh, owned: list[Piece], stage: int) -> list[slice]:
    """The runs of this rank's gradients that count for the norm: all but what another rank of the mesh has too and counts."""
    left_out = [borrowed.where] if borrowed else []
    if mesh.tp.rank:
        parameters = models.parameters(model)
        left_out += [slice(slot.start, slot.stop) for slot in model.layout.slots if parameters[slot.name].whole is None]
    runs = []
    for piece in owned:
        start, shift = piece.flat.start, (piece.shard.start - piece.flat.start) if stage > 1 else 0
        for hole in sorted(left_out, key=lambda one: one.start):
            if hole.start < piece.flat.stop and hole.stop > start:
                runs.append(slice(start + shift, max(start, hole.start) + shift))
                start = min(hole.stop, piece.flat.stop)
        runs.append(slice(start + shift, piece.flat.stop + shift))
    return [run for run in runs if run.start < run.stop]


def overlaps(options: Options, mesh: Mesh) -> bool:
    """Whether gradients are reduced while backward computes the next: as the options say, else where ranks span nodes.

    On one node memory is the wire, and a thread would only take the core from backward. Where other axes communicate within
    backward, or shards do, a thread would come between.
    """
    comm = mesh.world
    if options.overlap == "never" or comm.size == 1 or not mesh.only_dp or options.zero > 1:
        return False
    if not all(comm.exchange(comm.wire.serves_threads())):
        if options.overlap == "always":
            raise UsageError(f"--overlap always needs MPI_THREAD_SERIALIZED, which {comm.wire.describe()} does not offer here")
        return False
    return options.overlap == "always" or len(set(comm.exchange(comm.wire.node_color()))) > 1


def build_model(options: Options, dataset: Dataset, split: Split = WHOLE) -> Model:
    """The model that the options name, for this data's shape and classes; of a gpt the part that `split` says."""
    if options.model == "gpt":
        return gpt.gpt(gpt_shape(options), options.seed, split)
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
