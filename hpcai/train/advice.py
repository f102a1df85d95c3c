"""The choice of --compress for this model on this machine. The choice is predicted from measurements, and explained."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from time import perf_counter

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.data import sharding
from hpcai.data.dataset import Dataset, take
from hpcai.errors import UsageError, counted
from hpcai.reduce import advice
from hpcai.reduce.advice import Prediction
from hpcai.reduce.combine import exact
from hpcai.strategies.sharded import Sharded
from hpcai.strategies.strategy import part
from hpcai.train import fits, resume
from hpcai.train.build import build_reducers
from hpcai.train.options import checks
from hpcai.train.options.options import Options
from hpcai.train.replica import Replica, new_replica
from hpcai.train.step import cut

CANDIDATES = ("none", "bf16", "int8", "int4", "powersgd:4")
"""The choices that "auto" considers: no compression, and the codecs that cost no accuracy in bench/results/convergence.md."""

ALL = ("none", "bf16", "fp16", "fp8", "int8", "int8sum", "int4", "sign", "topk:0.01", "randomk:0.01", "powersgd:4")


def decided(options: Options, dataset: Dataset, comm: Communicator) -> Options:
    """Return the options with "auto" replaced by a choice. A resumed run keeps its choice; else the best prediction wins.
    Collective.

    Rank 0 prints the choice and the reason on stderr.
    """
    if options.compress != "auto":
        return options
    kept = comm.on_root(lambda: resume.compression(options))
    if kept is not None:
        why, name = "as in the run that is resumed", kept
    elif comm.size == 1:
        why, name = "there is only one rank", "none"
    else:
        predictions = predicted(options, new_replica(_with(options, "none"), dataset, comm), comm, CANDIDATES)
        best = advice.best(predictions)
        why, name = "; ".join(f"{one.name} {1e3 * one.seconds:.2f} ms" for one in predictions), best.name
    if comm.rank == 0:
        print(f"--compress auto takes {name} ({why})", file=sys.stderr)
    chosen = _with(options, name)
    checks.check(chosen)
    return chosen


def predicted(options: Options, plain: Replica, comm: Communicator, names: tuple[str, ...]) -> list[Prediction]:
    """Predict, for each choice, the cost of exchanging one step's gradients. The same on all ranks. Collective."""
    largest = max(4 * (bucket.stop - bucket.start) for bucket in plain.buckets)
    wire = advice.measure_wire(comm, largest, options.allreduce_algorithm)
    options = dataclasses.replace(options, compress_warmup_steps=0)
    sizes = [bucket.stop - bucket.start for bucket in plain.buckets]
    found = []
    for name in names:
        reducers = build_reducers(_with(options, name), plain.model, plain.buckets, comm.size) or [exact()] * len(sizes)
        found.append(advice.predict(list(zip(sizes, reducers, strict=True)), comm, wire)._replace(name=name))
    return found


def computing_s(replica: Replica, options: Options, dataset: Dataset, comm: Communicator) -> float:
    """Measure the seconds of forward, backward and optimizer on each rank's samples; return the slowest rank's median.

    Changes the replica's parameters and optimizer state. Collective.
    """
    index = sharding.shard(np.arange(min(options.batch, dataset.train_samples)), comm.rank, comm.size)
    rows = np.empty((0 if dataset.context else len(index), dataset.x_train.shape[-1]), replica.params.dtype)
    x, target = take(dataset, index, rows)
    times, base = [], part(replica.state, Sharded)
    assert base is not None
    for step in range(12):
        comm.barrier()
        begin = perf_counter()
        replica.pipeline.run(
            replica.plan, cut(x, target, 0, replica.micro_batches), replica.weights, replica.gradients, 1.0 / options.batch, step
        )
        base.optimizer.update(replica.params, replica.buffers.grads, replica.buffers.optimizer, step, 1e-6, 1.0)
        times.append(perf_counter() - begin)
    return float(comm.allreduce(np.array([statistics.median(times[2:])]), "max")[0])


def table(options: Options, dataset: Dataset, comm: Communicator) -> str:
    """Return a Markdown table with the predicted cost of each choice, for `python -m hpcai.doctor --compress`. Collective.

    Raises: UsageError for another dtype than f32, a mesh or ZeRO, and if memory is too small.
    """
    if options.dtype != "f32":
        raise UsageError(f"codecs work on f32; leave --dtype {options.dtype} out")
    if options.mesh or options.zero:
        raise UsageError("predictions are only for data parallelism; leave --mesh and --zero out")
    fits.require(options, dataset, comm)
    plain = new_replica(_with(options, "none"), dataset, comm)
    computing = computing_s(plain, options, dataset, comm)
    predictions = predicted(options, plain, comm, ALL)
    lines = [
        f"{plain.model.name} on {dataset.name}, batch {options.batch} on {counted(comm.size, 'rank')}: "
        f"{plain.buffers.grads.nbytes:,} bytes of gradient in {counted(len(plain.buckets), 'bucket')}; "
        f"forward, backward and optimizer take {1e3 * computing:.2f} ms",
        "",
        "| --compress | sent by a rank | coding | wire | step | speed |",
        "|---|---|---|---|---|---|",
    ]
    for one in predictions:
        step, plainly = computing + one.seconds, computing + predictions[0].seconds
        lines.append(
            f"| {one.name} | {one.sent:,.0f} B | {1e3 * one.coding_s:.2f} ms | {1e3 * one.wire_s:.2f} ms | {1e3 * step:.2f} ms | "
            f"{plainly / step:.2f}x |"
        )
    best = advice.best([one for one in predictions if one.name in CANDIDATES])
    said = "do not compress: no codec that keeps the accuracy is faster" if best.name == "none" else f"--compress {best.name}"
    return "\n".join([*lines, "", f"advice: {said}. With --overlap, part of the reduction runs during backward."])


def _with(options: Options, compress: str) -> Options:
    return dataclasses.replace(options, compress=compress, compress_layers=() if compress == "none" else options.compress_layers)
