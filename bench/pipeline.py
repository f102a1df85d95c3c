"""Idle time of each pipeline schedule against theory, on stages that take equal time.

    mpirun -n 4 python -m bench.pipeline [--picture timelines.png]

A stage's forward, input gradient and weights' gradient each wait for some milliseconds instead of computing, as on a device of
their own, so that ranks that share cores do not slow each other down; everything else (executor, messages of the size of a gpt's
activations, MPI) is real. Schedules take turns; medians over turns.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

import hpcai
from bench.harness import machine
from hpcai.comm.communicator import Communicator
from hpcai.nn import losses, models
from hpcai.nn.layers import Layer, Parameter, product
from hpcai.nn.models import Model
from hpcai.parallel import schedules
from hpcai.parallel.pipeline import MicroBatch, Pipeline, Stages
from hpcai.parallel.schedules import Action, Work
from hpcai.parallel.zero import WholeGradients

ROWS, WIDTH = 1024, 128


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.pipeline", description=__doc__.splitlines()[0])
    parser.add_argument("--micro-batches", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=2, help="stages a rank of the interleaved schedule")
    parser.add_argument(
        "--ms", type=float, default=30.0, help="of a rank's forward, of its input gradient, and of its weights' gradient"
    )
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    comm = hpcai.init()
    sides = {name: side(arguments, comm, name) for name in schedules.NAMES}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    timelines: dict[str, list[list[Work]]] = {}
    for turn in range(1 + arguments.turns):
        for name, run in sides.items():
            comm.barrier()
            begin = perf_counter()
            pipeline = run()
            seconds = float(comm.allreduce(np.array([perf_counter() - begin]), "max")[0])
            timelines[name] = gathered(comm, pipeline, begin)
            if turn:
                found[name].append((seconds, schedules.bubble(timelines[name])))
    if comm.rank == 0:
        report(arguments, comm, found)
        if arguments.picture:
            picture(arguments.picture, timelines)


def side(arguments: argparse.Namespace, comm: Communicator, name: str) -> Callable[[], Pipeline]:
    """A function that runs one batch through a pipeline by that schedule."""
    chunks = arguments.chunks if name == "interleaved" else 1
    seconds = arguments.ms / 1e3 / chunks
    layers = [layer for i in range(chunks) for layer in (waiting(f"begin{i}", 0.0), waiting(f"stage{i}", seconds))]
    model = models.sequential("waiting", *layers, loss=losses.mean_squared_error())
    shape, spans = ((ROWS, WIDTH),) * chunks, tuple(slice(2 * i, 2 * i + 2) for i in range(chunks))
    pipeline = Pipeline(Stages(model, spans, shape, shape), comm, np.dtype(np.float32))
    plan = schedules.plan(name, comm.size, arguments.micro_batches, chunks)
    x = np.zeros((ROWS, WIDTH), np.float32)
    micros = [MicroBatch(x.reshape(1, ROWS, WIDTH), x, i) for i in range(arguments.micro_batches)]
    params, gradients = weights(model)

    def run() -> Pipeline:
        pipeline.run(plan, micros, params, gradients, 1.0, 0)
        return pipeline

    return run


def weights(model: Model) -> tuple[Any, WholeGradients]:
    flat = np.zeros(model.layout.size, np.float32)
    return models.per_layer(model, flat), WholeGradients(model, flat.copy())


def waiting(name: str, seconds: float) -> Layer:
    """A layer that takes so long for each of its three kinds of work; rows pass through it.

    The first stage computes no gradient of its input, so each stage begins with such a layer that takes no time.
    """
    inner = product(name, Parameter((1, 1), 1.0), Parameter((1,), 1.0))

    def passing(params: Any, cache: Any, x: Any) -> Any:
        rest(seconds)
        return x.reshape(ROWS, WIDTH)

    def gradients(params: Any, grads: Any, cache: Any, dy: Any) -> None:
        rest(seconds)
        for array in grads.values():
            array[...] = 0

    return inner._replace(forward=passing, backward=passing, gradients=gradients)


def rest(seconds: float) -> None:
    if seconds:
        sleep(seconds)


def gathered(comm: Communicator, pipeline: Pipeline, begin: float) -> list[list[Work]]:
    found = comm.allgather_object([(*work.action, work.start - begin, work.end - begin) for work in pipeline.timeline])
    return [[Work(Action(*work[:3]), work[3], work[4]) for work in works] for works in found]


def report(arguments: argparse.Namespace, comm: Communicator, found: dict[str, list[tuple[float, float]]]) -> None:
    """A table in Markdown."""
    print(f"{comm.size} stages, {arguments.micro_batches} micro-batches; forward and each half of backward take a rank")
    print(f"{arguments.ms} ms each; messages of {ROWS * WIDTH * 4:,} bytes; {arguments.turns} turns. {machine(comm)}.\n")
    print("| schedule | step | idle, measured | idle, in theory | measured / theory | range over turns |")
    print("|---|---|---|---|---|---|")
    for name, turns in found.items():
        chunks = arguments.chunks if name == "interleaved" else 1
        equal = dict.fromkeys("FIW", arguments.ms / chunks)
        theory = schedules.bubble_in_theory(name, comm.size, arguments.micro_batches, equal, chunks)
        seconds, idle = (statistics.median(column) for column in zip(*turns, strict=True))
        least, most = min(idle for _, idle in turns), max(idle for _, idle in turns)
        print(f"| {name} | {1e3 * seconds:.1f} ms | {idle:.2%} | {theory:.2%} | {idle / theory:.3f} | {least:.2%} - {most:.2%} |")


def picture(path: Path, timelines: dict[str, list[list[Work]]]) -> None:
    """All schedules, one below the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    from hpcai.train.report.trace import COLORS, NAMES, draw

    end = max(works[-1].end for ranks in timelines.values() for works in ranks)
    figure, axes = pyplot.subplots(len(timelines), 1, figsize=(12, 1.6 * len(timelines)), sharex=True, layout="constrained")
    for axis, (name, ranks) in zip(axes, timelines.items(), strict=True):
        draw(axis, ranks, end)
        axis.set(title=name, ylabel="rank", yticks=range(len(ranks)), xlim=(0, 1e3 * end))
    axes[-1].set(xlabel="ms")
    figure.legend(
        [Patch(color=COLORS[kind]) for kind in COLORS], [NAMES[kind] for kind in COLORS], loc="outside right upper", fontsize=8
    )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
