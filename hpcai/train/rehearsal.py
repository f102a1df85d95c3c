"""A rehearsal of a run: --dry-run prints what would be trained, --find-lr looks for a learning rate. A rehearsal does not write,
lock or change any part of a run.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Iterator
from time import perf_counter
from typing import NamedTuple

import numpy as np

from hpcai.comm.background import Background
from hpcai.comm.communicator import Communicator
from hpcai.data import sharding
from hpcai.data.dataset import Dataset
from hpcai.errors import NonFiniteError, counted
from hpcai.nn import models
from hpcai.nn.models import Model
from hpcai.strategies.sharded import memory_bytes
from hpcai.train import advice, build, class_weights, fits, inputs, lr_finder, outputs, resume
from hpcai.train.options import remarks
from hpcai.train.options.options import Options
from hpcai.train.outcome import Report
from hpcai.train.replica import Replica, new_replica
from hpcai.train.report.progress_line import duration
from hpcai.train.run import batch_of, room
from hpcai.train.step import train_step
from hpcai.xp import Array

TIMED = 6
"""Steps that --dry-run makes to measure the time of one. The first does not count, since it loads the kernels."""

LISTED = 60
"""The largest number of layers that are listed."""


def run(options: Options, comm: Communicator) -> None:
    """Carry out --dry-run or --find-lr, on all ranks. Collective. Raises: UsageError, DataError, CheckpointError."""
    dataset = inputs.share(comm, lambda: inputs.prepare(options, comm.size), lambda: inputs.load_alone(options))
    dataset = class_weights.decided(options, dataset, comm)
    comm.on_root(lambda: resume.require_there(options))
    if options.find_lr:
        comm.on_root(lambda: outputs.require_writable(options))
    fits.require(options, dataset, comm)
    options = advice.decided(options, dataset, comm)
    replica = new_replica(options, dataset, comm, resume.cut(options, comm))
    if options.find_lr:
        lr_finder.say(options, _range_test(options, dataset, replica), comm)
    else:
        _describe(options, dataset, replica, comm)


def _steps(options: Options, dataset: Dataset, replica: Replica) -> Iterator[tuple[Array, Array, int, int]]:
    """Yield the inputs of each step, without end: x, target, samples of the global batch, and the step's number."""
    samples = min(options.batch, dataset.train_samples)
    rows, at = room(dataset, samples, replica), 0
    while True:
        yield *batch_of(dataset, options, replica, at, rows), at
        at += 1


def _range_test(options: Options, dataset: Dataset, replica: Replica) -> list[lr_finder.Tried]:
    """Train fresh parameters while the learning rate grows; return the loss at each rate. Collective."""
    finder = lr_finder.Finder()
    for x, target, count, at in _steps(options, dataset, replica):
        with contextlib.suppress(NonFiniteError):
            done = train_step(replica, x, target, count, at, finder.lr)
            if finder.goes_on(done.loss_sum / done.targets):
                continue
        return finder.tried
    raise AssertionError("steps have no end")


def _describe(options: Options, dataset: Dataset, replica: Replica, comm: Communicator) -> None:
    """Print what would be trained. Collective. Raises: the errors that a run would raise before its first step."""
    progress = resume.restored(options, replica, comm)
    if progress is None:
        comm.on_root(lambda: resume.require_free(options))
        replica.strategy.restored(replica.state)
    done = 0 if progress is None else progress.step
    per_epoch = sharding.steps_per_epoch(dataset.train_samples, options.batch)
    total = min(options.steps or sys.maxsize, (options.epochs or sys.maxsize) * per_epoch)
    times = [_timed(replica, *step).step_s for step, _ in zip(_steps(options, dataset, replica), range(TIMED), strict=False)]
    step_s = float(comm.allreduce(np.array([statistics.median(times[1:])]), "max")[0])
    kept = {name: max(sizes) for name, sizes in _by_name(comm.allgather_object(_kept(replica))).items()}
    comm.on_root(lambda: _print(options, dataset, replica, kept, done, total, step_s))


def _kept(replica: Replica) -> dict[str, int]:
    """Return the bytes that this rank keeps from step to step, by their use."""
    sizes = [(one.held, one.array.nbytes) for one in replica.kept() if one.array is not None]
    return memory_bytes(replica.buffers) | {
        "compression": sum(size for held, size in sizes if held in ("own", "owner", "common")),
        "copies of shards": sum(size for held, size in sizes if held == "copy"),
    }


def _print(
    options: Options, dataset: Dataset, replica: Replica, kept: dict[str, int], done: int, total: int, step_s: float
) -> None:
    """Print the layers, the facts, and the number and time of steps. On rank 0."""
    per_epoch = sharding.steps_per_epoch(dataset.train_samples, options.batch)
    for words in remarks.beforehand(options, replica.mesh.sizes, dataset.train_samples, per_epoch, total, dataset.validates):
        print(f"hpcai: {words}", file=sys.stderr, flush=True)
    layers = _layers(build.build_model(options, dataset), dataset)
    micro = -(-min(options.batch, dataset.train_samples) // (replica.mesh.dp.size * options.micro_batches))
    kept["activations, about"] = micro * sum(layer.elements for layer in layers) * replica.params.itemsize // replica.mesh.pp.size
    print("\n".join(_table(layers)))
    for name, text in _facts(options, dataset, replica, kept):
        print(f"  {name:<16}  {text}")
    left = max(0, total - done)
    goes_on = f", {done:,} of them done, by {options.resume if options.resume != 'auto' else options.run_dir}" if done else ""
    length = f"{total:,} ({per_epoch:,} an epoch{goes_on})"
    time = f"{1e3 * step_s:.2f} ms a step, measured over {TIMED - 1}; {duration(left * step_s)} for {counted(left, 'step')}"
    for name, text in (("steps", length), ("time", f"{time}, without evaluation and checkpoints")):
        print(f"  {name:<16}  {text}")
    print("nothing was written: leave --dry-run out to train", flush=True)


def _timed(replica: Replica, x: Array, target: Array, count: int, at: int) -> Report:
    before = perf_counter()
    done = train_step(replica, x, target, count, at, 1e-9)
    return done._replace(step_s=perf_counter() - before)


def _by_name(found: list[dict[str, int]]) -> dict[str, list[int]]:
    return {name: [one[name] for one in found] for name in found[0]}


class Described(NamedTuple):
    """A layer: its name, the shape and number of elements of its output for one sample, and its number of parameters."""

    name: str
    shape: tuple[int, ...]
    elements: int
    parameters: int


def _layers(model: Model, dataset: Dataset) -> list[Described]:
    """Return the model's layers, from a forward pass on one sample of zeros. Only one layer's parameters are in memory at a time,
    since the whole model may not fit into a rank's memory.
    """
    shapes: list[tuple[int, ...]] = []
    x = np.zeros((1, *dataset.shape), np.int64 if dataset.context else np.float32)
    for layer, cache in zip(model.layers, models.caches(model), strict=True):
        cache["moment"] = None
        x = layer.forward({name: np.zeros(p.shape, np.float32) for name, p in layer.parameters.items()}, cache, x)
        shapes.append(x.shape)
    counts = [
        sum(int(np.prod(p.shape)) for p in layer.parameters.values()) * (not layer.shares_parameters_with)
        for layer in model.layers
    ]
    return [
        Described(layer.name, shape[1:], int(np.prod(shape)), count)
        for layer, shape, count in zip(model.layers, shapes, counts, strict=True)
    ]


def _table(layers: list[Described]) -> list[str]:
    """Return a table with a row for each layer; of many layers, the first ones."""
    rows = [("layer", "output", "parameters")]
    rows += [(one.name, " x ".join(map(str, one.shape)) or "1", f"{one.parameters:,}") for one in layers[:LISTED]]
    if len(layers) > LISTED:
        more = layers[LISTED:]
        rows.append((f"and {len(more)} more", "", f"{sum(one.parameters for one in more):,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]


def _facts(options: Options, dataset: Dataset, replica: Replica, kept: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Return the facts to print about model, data and ranks."""
    whole = sum(int(np.prod(p.whole or p.shape)) for p in models.parameters(replica.whole).values())
    yield "model", f"{replica.whole.name}, {whole:,} parameters, {options.dtype}"
    sizes = ", ".join(f"{name} {nbytes / 2**20:,.1f}" for name, nbytes in kept.items() if nbytes)
    yield "memory of a rank", f"{sum(kept.values()) / 2**20:,.1f} MiB: {sizes}"
    classes = f", {counted(dataset.classes, 'class', 'classes')}" if dataset.classes else ""
    held = f", {dataset.validating.test_samples:,} for validation" if dataset.validates else ""
    shape = " x ".join(map(str, dataset.shape))
    parts = f"{counted(dataset.train_samples, 'training sample')} of {shape}{classes}, {dataset.test_samples:,} for testing{held}"
    yield "data", f"{dataset.name}: {parts}"
    axes = ", ".join(f"{name}={count}" for name, count in replica.mesh.sizes._asdict().items())
    yield "ranks", f"{replica.mesh.world.size} ({axes}; {replica.mesh.world.wire.describe()})"
    yield "gradients", _travel(options, replica)


def _travel(options: Options, replica: Replica) -> str:
    """Describe how the gradients of data-parallel ranks are combined."""
    dp = replica.mesh.dp
    if dp.size == 1:
        return "not sent: there is one data-parallel rank"
    shards = f", --zero {options.zero}" if options.zero else ""
    if options.zero > 1:
        return f"reduce-scatter while backward computes them{shards}"
    how = f"--compress {options.compress}" if options.compress != "none" else "reduce-scatter" if options.zero else "all-reduce"
    where = "through shared memory" if dp.shares_memory and options.allreduce_algorithm in ("auto", "node") else "by messages"
    beside = ", during backward" if isinstance(replica.carrier, Background) else ""
    size = f"{replica.buffers.grads.nbytes / 2**20:,.1f} MiB"
    return f"{how} {where}, {size} in {counted(len(replica.buckets), 'bucket')}{beside}{shards}"
