"""Build the parts of a replica from options: mesh, model and its pipeline stages, optimizer, reducers, schedule."""

from __future__ import annotations

import itertools
from fnmatch import fnmatch

import numpy as np

from hpcai import entry
from hpcai.arena import Layout
from hpcai.comm.communicator import Communicator
from hpcai.data.dataset import Dataset
from hpcai.errors import UsageError
from hpcai.nn import gpt, models
from hpcai.nn.models import Model
from hpcai.nn.split import WHOLE, Split
from hpcai.nn.table import MODELS, shape
from hpcai.optim import schedules
from hpcai.optim.optimizers import Optimizer
from hpcai.optim.schedules import Schedule
from hpcai.optim.table import OPTIMIZERS
from hpcai.parallel import mesh as meshes
from hpcai.parallel import schedules as plans
from hpcai.parallel import stages as cuts
from hpcai.parallel.mesh import Mesh
from hpcai.parallel.pipeline import Stages
from hpcai.parallel.schedules import Plan
from hpcai.reduce.named import by_name
from hpcai.reduce.policy import by_parts, policy
from hpcai.reduce.reducer import Reducer
from hpcai.train import class_weights, own
from hpcai.train.options import checks, own_name
from hpcai.train.options.options import Options


def build_mesh(options: Options, comm: Communicator) -> Mesh:
    """Return the mesh that the options name. Collective.

    Raises: UsageError if other options are incompatible with this mesh.
    """
    axes = meshes.sizes(options.mesh, comm.size)
    checks.check_mesh(options, *axes)
    return meshes.mesh(comm, axes)


def gpt_shape(options: Options) -> gpt.Shape:
    """Return the shape of the gpt that the options describe. Its vocabulary is bytes."""
    return shape(**entry.values(MODELS["gpt"], options))


def check(options: Options, ranks: int) -> None:
    """Raise UsageError for options that are impossible on so many ranks, as far as the options alone show without the data."""
    axes = meshes.sizes(options.mesh, ranks)
    checks.check_mesh(options, *axes)
    if options.model == "gpt":
        gpt.check(gpt_shape(options), axes.tp)
    if axes.pp > 1:
        if options.model == "gpt":
            cuts.cut([1.0] * (2 * options.layers + 2), axes.pp * (options.pipeline_chunks or 1))
        plans.plan(options.pipeline_schedule, axes.pp, options.micro_batches, options.pipeline_chunks or 1)


def build_plan(options: Options, mesh: Mesh) -> Plan:
    """Return the pipeline's schedule. A single stage computes micro-batches one after another."""
    if mesh.pp.size == 1:
        return plans.one_f_one_b(1, options.micro_batches)
    return plans.plan(options.pipeline_schedule, mesh.pp.size, options.micro_batches, options.pipeline_chunks or 1)


Cut = list[list[int]] | None
"""The range [start, stop) of layer groups of each pipeline stage; None for a single stage."""


def build_stages(
    options: Options, dataset: Dataset, whole: Model, mesh: Mesh, dtype: np.dtype, cut: Cut = None
) -> tuple[Model, Stages, Cut]:
    """Return this rank's layers, their pipeline stages, and the cut between stages. Collective.

    Without a pipeline a rank has all layers. Stages follow `cut`, else the seconds that each group of layers takes on rank 0.
    """
    ranks, chunks = mesh.pp.size, options.pipeline_chunks or 1
    if ranks == 1:
        kept = tuple(cuts.groups(whole)) if options.recompute else None
        return whole, Stages(whole, (slice(0, len(whole.layers)),), ((),), ((),), kept), None
    cuts.cut([1.0] * len(cuts.groups(whole)), ranks * chunks)
    plans.plan(options.pipeline_schedule, ranks, options.micro_batches, chunks)
    batch = min(options.batch, dataset.train_samples)
    samples = max(1, batch // (mesh.dp.size * options.micro_batches))
    groups = cuts.measure(whole, np.zeros((samples, *dataset.shape), np.int64 if dataset.context else dtype), dtype)
    seconds = mesh.world.allgather_object([group.seconds for group in groups])[0]
    spans = [slice(*span) for span in cut] if cut and cut[-1][1] == len(groups) else cuts.cut(seconds, ranks * chunks)
    mine = [groups[span] for span in spans[mesh.pp.rank :: ranks]]
    layers = [slice(some[0].span.start, some[-1].span.stop) for some in mine]
    model = models.parts(whole, layers)
    ends = [0, *itertools.accumulate(span.stop - span.start for span in layers)]
    stages = Stages(
        model,
        tuple(slice(a, b) for a, b in itertools.pairwise(ends)),
        tuple(some[0].entering for some in mine),
        tuple(some[-1].leaving for some in mine),
        tuple(cuts.groups(model)) if options.recompute else None,
    )
    return model, stages, [[span.start, span.stop] for span in spans]


def overlaps(options: Options, mesh: Mesh) -> bool:
    """Return whether gradients are reduced while backward computes the next ones: as the options say, by default if ranks span
    nodes. Collective.

    On one node ranks exchange data through memory, and a thread would only take the core from backward. If other axes or shards
    communicate during backward, a thread would interfere. Raises: UsageError if MPI does not allow the thread.
    """
    comm = mesh.world
    if options.overlap == "never" or comm.size == 1 or not mesh.only_dp or options.zero > 1:
        return False
    if not all(comm.allgather_object(comm.wire.serves_threads())):
        if options.overlap == "always":
            raise UsageError(f"--overlap always needs MPI_THREAD_SERIALIZED, which {comm.wire.describe()} does not offer here")
        return False
    return options.overlap == "always" or len(set(comm.allgather_object(comm.wire.node_color()))) > 1


def build_model(options: Options, dataset: Dataset, split: Split = WHOLE) -> Model:
    """Return the model that the options name, for the shape, classes and class weights of this data.

    split: the tensor-parallel part of a gpt that this rank holds. Raises: UsageError.
    """
    return class_weights.weighing(_build_model(options, dataset, split), options, dataset)


def _build_model(options: Options, dataset: Dataset, split: Split) -> Model:
    assert options.model is not None
    if own_name.is_own(options.model):
        return own.fitting(own.model(options.model, dataset), options.recompute, options.dtype)
    row, loss = MODELS[options.model], models.default_loss(dataset.classes)
    made: Model = row.make(dataset.shape, dataset.outputs, loss, split, options.seed, **entry.values(row, options))
    return made


def build_optimizer(options: Options, model: Model) -> Optimizer:
    """Return the optimizer that the options name."""
    if own_name.is_own(options.optimizer):
        return own.optimizer(options.optimizer, model)
    row = OPTIMIZERS[options.optimizer]
    given = {name: value for name, value in entry.values(row, options).items() if name != "lr"}
    made: Optimizer = row.make(model.layout, **given)
    return made


def build_reducers(
    options: Options, model: Model, buckets: list[slice], ranks: int, tensor_parallel: bool = False
) -> list[Reducer]:
    """Return a reducer for each bucket; an empty list if gradients are summed uncompressed.

    Arrays that every tensor-parallel rank holds whole are sent uncompressed. A codec would mix such an array with neighbouring
    arrays that differ between those ranks, and the copies would drift apart.
    """
    if options.compress in ("none", "reproducible"):
        return []
    copies = {name for name, parameter in models.parameters(model).items() if tensor_parallel and parameter.whole is None}
    return [_reducer(options, model.layout, bucket, ranks, copies) for bucket in buckets]


def _reducer(options: Options, layout: Layout, bucket: slice, ranks: int, copies: set[str]) -> Reducer:
    """Return one bucket's reducer. Neighbouring arrays with the same choice form one part, and a part is reduced together."""
    slots = [slot for slot in layout.slots if bucket.start <= slot.start and slot.stop <= bucket.stop]
    choices = ["none" if slot.name in copies else _choice(options, slot.name) for slot in slots]
    starts = [i for i in range(len(slots)) if i == 0 or choices[i] != choices[i - 1]]
    parts = []
    for first, after in zip(starts, [*starts[1:], len(slots)], strict=True):
        begin, end = slots[first].start, slots[after].start if after < len(slots) else bucket.stop
        places = [(slot.start - begin, slot.shape) for slot in slots[first:after]]
        reducer = by_name(choices[first], ranks, places=places, seed=options.seed, feedback=not options.no_error_feedback)
        one = policy(reducer, smallest=options.compress_smallest, warmup=options.compress_warmup_steps)
        parts.append((slice(begin - bucket.start, end - bucket.start), one))
    return parts[0][1] if len(parts) == 1 else by_parts(parts)


def _choice(options: Options, name: str) -> str:
    """Return the choice of compression for the array of that name."""
    return next((choice for pattern, choice in options.compress_layers if fnmatch(name, pattern)), options.compress)


def build_schedule(options: Options, steps: int) -> Schedule:
    """Return the schedule of the learning rate over `steps` steps."""
    assert options.lr is not None
    if options.lr_schedule == "cosine":
        return schedules.cosine(options.lr, steps=steps, warmup=options.lr_warmup_steps)
    if options.lr_schedule == "step":
        return schedules.step(options.lr, every=options.lr_decay_steps, warmup=options.lr_warmup_steps)
    return schedules.constant(options.lr, warmup=options.lr_warmup_steps)
