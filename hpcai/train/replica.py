"""A replica: one rank's part of the model and of all state that a step changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcai import arena
from hpcai.comm.background import Background, Deferred
from hpcai.comm.communicator import Communicator
from hpcai.comm.launch import cores
from hpcai.data.contents import Contents
from hpcai.data.dataset import Dataset
from hpcai.nn import models
from hpcai.nn.layers import Params
from hpcai.nn.models import Model
from hpcai.parallel import stages as parallel_stages
from hpcai.parallel import tensor, zero
from hpcai.parallel.mesh import Mesh
from hpcai.parallel.pipeline import Pipeline
from hpcai.parallel.schedules import Plan
from hpcai.parallel.stages import TiedParameter
from hpcai.parallel.zero import ShardedGradients, WholeGradients
from hpcai.strategies.compressed import compressed
from hpcai.strategies.mixed import mixed
from hpcai.strategies.redundant import redundant
from hpcai.strategies.reproducible import reproducible
from hpcai.strategies.sharded import sharded
from hpcai.strategies.strategy import Buffers, Kept, Setup, State, Strategy, Totals
from hpcai.strategies.tied import tied
from hpcai.train import build, own, rounding, votes
from hpcai.train.options import own_name
from hpcai.train.options.options import Options
from hpcai.train.state.undo import Undo
from hpcai.xp import DTYPES, Array

BUCKET_BYTES = 25 << 20
OVERLAPPED_BUCKET_BYTES = 1 << 20
"""Buckets are large if all are reduced at the end, and small with overlap, so that the first is sent early."""

UNITS, SMALLEST_UNIT_BYTES = 16, 1 << 18
"""Shards of gradients and parameters are sent in about UNITS units, but none smaller than this."""

Decided = tuple[int, Totals] | None
"""The number and the sums of the last decided step; None before the first (see elastic/recover.py)."""


@dataclass
class Replica:
    """This rank's part of the model: its place in the mesh, its layers, and the strategy that keeps replicas in agreement.

    starts: where each layer's gradients start in the flat layout; grain: samples of a fixed micro-batch, 0 without; decided,
    updated: the last decided step, and whether the parameters here include it; undo: the state that a step changes before it is
    decided (see elastic/recover.py); encoding: of the data, for predictions; contents: a description of the training data.
    """

    mesh: Mesh
    whole: Model
    model: Model
    pipeline: Pipeline
    evaluation: Pipeline
    plan: Plan
    strategy: Strategy
    state: State
    starts: list[int]
    buckets: list[slice]
    carrier: Background | Deferred
    grain: int
    micro_batches: int
    chunks: int
    reduction: str
    algorithm: str
    optimizer_name: str
    cut: build.Cut
    encoding: dict[str, Any] | None = None
    contents: Contents | None = None
    votes: Array = field(default_factory=votes.none)
    decided: Decided = None
    updated: bool = False
    undo: Undo = field(default_factory=Undo)

    @property
    def buffers(self) -> Buffers:
        """Parameters, gradients and optimizer state, whole or in shards."""
        found: Buffers = self.state.buffers
        return found

    @property
    def params(self) -> Array:
        """The parameters that the optimizer updates: flat, whole or a shard."""
        return self.buffers.params

    @property
    def weights(self) -> Sequence[Params]:
        """For each layer, its parameters by name."""
        return self.buffers.weights

    @property
    def gradients(self) -> WholeGradients | ShardedGradients:
        """The arrays into which layers write gradients."""
        return self.buffers.gradients

    def kept(self) -> list[Kept]:
        """Return a list of the state that outlives a step."""
        return self.strategy.kept(self.state)


def new_replica(options: Options, dataset: Dataset, comm: Communicator, cut: build.Cut = None) -> Replica:
    """Build a fresh replica. Together all replicas form the same model on any mesh. Collective.

    cut: between the pipeline's stages; None: from measured times. Raises: UsageError if model and mesh are incompatible.
    """
    mesh = build.build_mesh(options, comm)
    whole = build.build_model(options, dataset, tensor.split(mesh.tp))
    storage = np.dtype(DTYPES[options.dtype])
    dtype = np.dtype(np.float32) if options.dtype in rounding.STORAGE else storage
    if storage != dtype:
        whole = rounding.rounding(whole, storage)
    model, stages, cut = build.build_stages(options, dataset, whole, mesh, dtype, cut)
    optimizer = build.build_optimizer(options, model)
    overlap = build.overlaps(options, mesh)
    buckets, units = _travelling(options, model, dtype, storage, overlap)
    initial = models.initialise(model, options.seed, dtype)
    if own_name.is_own(options.model or ""):
        own.share(model, initial, mesh.dp)
    setup = Setup(model, mesh, initial, dtype, storage, optimizer, buckets, units, options.allreduce_algorithm, options.clip_norm)
    strategy = _strategy(options, setup, parallel_stages.tied_parameter(model, whole, mesh))
    by_grains = options.compress == "reproducible"
    if by_grains:
        cores.limit_threads(1)  # so that every rank splits a matrix product alike
    return Replica(
        mesh=mesh,
        whole=whole,
        model=model,
        pipeline=Pipeline(stages, mesh.pp, dtype),
        evaluation=Pipeline(stages._replace(recompute=None), mesh.pp, dtype),
        plan=build.build_plan(options, mesh),
        strategy=strategy,
        state=strategy.init(setup),
        starts=models.starts(model),
        buckets=buckets if options.zero < 2 else [],
        carrier=Background() if overlap else Deferred(),
        grain=options.fixed_micro_batch if by_grains else 0,
        micro_batches=options.micro_batches,
        chunks=options.pipeline_chunks or 1,
        reduction=options.loss_reduction,
        algorithm=options.allreduce_algorithm,
        optimizer_name=optimizer.name,
        cut=cut,
        encoding=dataset.encoding,
        contents=dataset.contents,
    )


def _travelling(
    options: Options, model: Model, dtype: np.dtype, storage: np.dtype, overlap: bool
) -> tuple[list[slice], list[slice]]:
    """Return two lists of slices of the flat layout: buckets to reduce gradients, and units in which shards are sent."""
    buckets = arena.buckets(
        model.layout, dtype.itemsize, options.bucket_bytes or (OVERLAPPED_BUCKET_BYTES if overlap else BUCKET_BYTES)
    )
    if options.zero < 2:
        return buckets, buckets
    unit_bytes = options.bucket_bytes or max(SMALLEST_UNIT_BYTES, storage.itemsize * model.layout.size // UNITS)
    return buckets, zero.units(model, storage.itemsize, unit_bytes)


def _strategy(options: Options, setup: Setup, parameter: TiedParameter | None) -> Strategy:
    """Return the strategy that the options ask for."""
    model, mesh = setup.model, setup.mesh
    strategy = sharded(options.zero, _left_out(model, mesh, parameter))
    if reducers := build.build_reducers(options, model, setup.buckets, mesh.dp.size, mesh.tp.size > 1):
        strategy = compressed(strategy, reducers)
    if options.compress == "reproducible":
        strategy = reproducible(strategy)
    if setup.storage != setup.dtype:
        strategy = mixed(strategy)
    if options.redundancy and options.zero and mesh.dp.size > 1:
        strategy = redundant(strategy, whole=options.zero < 2)
    return strategy if parameter is None else tied(strategy, parameter, shards=options.zero > 0)


def _left_out(model: Model, mesh: Mesh, parameter: TiedParameter | None) -> list[slice]:
    """Return the slices of the gradient that another rank of the mesh also has; that rank counts them in the norm."""
    found = [parameter.where] if parameter is not None and mesh.pp.rank else []
    if mesh.tp.rank:
        parameters = models.parameters(model)
        found += [slice(slot.start, slot.stop) for slot in model.layout.slots if parameters[slot.name].whole is None]
    return found
