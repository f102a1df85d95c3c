"""One rank's part of everything that a step changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hpcai import arena, ops
from hpcai.comm.background import Background, Foreground
from hpcai.comm.communicator import Communicator
from hpcai.comm.launch import cores
from hpcai.data.contents import Contents
from hpcai.data.dataset import Dataset
from hpcai.nn import models
from hpcai.nn.layers import Params
from hpcai.nn.models import Model
from hpcai.optim.optimizers import Optimizer, State
from hpcai.parallel import tensor, zero
from hpcai.parallel.mesh import Mesh
from hpcai.parallel.pipeline import Pipeline
from hpcai.parallel.redundancy import Backup
from hpcai.parallel.schedules import Plan
from hpcai.parallel.zero import GatheredParameters, Piece, ShardedGradients, WholeGradients
from hpcai.reduce.counting import Tally
from hpcai.reduce.reducer import Reducer
from hpcai.train import build, precision, votes
from hpcai.train.options.options import Options
from hpcai.train.outcome import Totals
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

    decided, updated: the number and sums of the last step that was decided, and whether the parameters here have it; remembered:
    what a step began with and changes before it is decided (see elastic/recover.py); encoding: of the data, for predictions;
    contents: of the data that it learns.
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
    cut: build.Cut
    backup: Backup | None
    encoding: dict[str, Any] | None = None
    contents: Contents | None = None
    votes: Array = field(default_factory=votes.none)
    decided: tuple[int, Totals] | None = None
    updated: bool = False
    remembered: tuple[int, Any] | None = None


def replica(options: Options, dataset: Dataset, comm: Communicator, cut: build.Cut = None) -> Replica:
    """A fresh replica, all of them together the same model on any mesh. Collective. cut: of the pipeline's stages, where it is
    not to be measured.

    Raises: UsageError where model and mesh do not fit.
    """
    mesh = build.build_mesh(options, comm)
    whole = build.build_model(options, dataset, tensor.split(mesh.tp))
    storage = np.dtype(DTYPES[options.dtype])
    dtype = np.dtype(np.float32) if options.dtype in precision.STORAGE else storage
    if storage != dtype:
        whole = precision.rounding(whole, storage)
    model, stages, cut = build.build_stages(options, dataset, whole, mesh, dtype, cut)
    borrowed = _borrowed(model, whole, mesh)
    optimizer = build.build_optimizer(options, model)
    overlap = build.overlaps(options, mesh)
    bucket_bytes = options.bucket_bytes or (OVERLAPPED_BUCKET_BYTES if overlap else BUCKET_BYTES)
    buckets = arena.buckets(model.layout, dtype.itemsize, bucket_bytes)
    unit_bytes = options.bucket_bytes or max(SMALLEST_UNIT_BYTES, storage.itemsize * model.layout.size // UNITS)
    units = zero.units(model, storage.itemsize, unit_bytes) if options.zero > 1 else buckets
    owned = zero.pieces(units, mesh.dp) if options.zero else [Piece(slice(0, model.layout.size), slice(0, model.layout.size))]

    initial = models.initialise(model, options.seed, dtype)
    weights: Sequence[Params]
    half = None
    if options.zero < 3:
        stored = mesh.dp.symmetric_empty(model.layout.size, storage)
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
        grads = mesh.dp.symmetric_empty(model.layout.size, storage)
        grads[:] = 0
        gradients = WholeGradients(model, grads if half is None else np.zeros(model.layout.size, dtype))
    else:
        gradients = ShardedGradients(model, units, mesh.dp, dtype, storage)
        grads = gradients.flat

    reducers = build.build_reducers(options, model, buckets, mesh.dp.size, mesh.tp.size > 1)
    states = [reducer.init(grads[bucket]) for reducer, bucket in zip(reducers, buckets, strict=False)]
    by_grains = options.compress == "reproducible"
    if by_grains:
        cores.limit_threads(1)  # the same cut of a matrix product everywhere
    chunks = options.pipeline_chunks or 1
    mine = Replica(
        mesh=mesh,
        whole=whole,
        model=model,
        pipeline=Pipeline(stages, mesh.pp, dtype),
        evaluation=Pipeline(stages._replace(recompute=None), mesh.pp, dtype),
        plan=build.build_plan(options, mesh),
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
        grain=options.fixed_micro_batch if by_grains else 0,
        micro_batches=options.micro_batches,
        chunks=chunks,
        reduction=options.loss_reduction,
        algorithm=options.allreduce_algorithm,
        clip=options.clip_norm,
        cut=cut,
        backup=Backup(units, mesh.dp, optimizer, dtype) if options.redundancy and options.zero and mesh.dp.size > 1 else None,
        encoding=dataset.encoding,
        contents=dataset.contents,
    )
    if half is not None:
        publish(mine)
    return mine


def publish(mine: Replica) -> None:
    """The 16-bit parameters from the master copies, on all ranks. Collective among data-parallel ranks."""
    assert mine.half is not None
    stored = mine.half.stored
    for piece in mine.owned:
        ops.cast_into(stored[piece.flat if mine.zero < 3 else piece.shard], mine.params[piece.shard])
    if isinstance(mine.weights, GatheredParameters):
        mine.weights.forget()
        return
    if mine.zero:
        for unit in mine.units:
            mine.mesh.dp.allgather(stored[unit])
    ops.cast_into(mine.half.computed, stored)


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
