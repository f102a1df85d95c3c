"""Strong and weak scaling of a gpt on the cores that are there, meshes and ZeRO side by side, and a prediction of larger worlds.

    mpirun -n 2 python -m bench.scaling [--plot scaling.png]

Measured: a step of training on 1 rank and on all, all sides interleaved. Strong: the same global batch; weak: the same batch a
rank. Predicted, and marked so: the same model on 1 to 4,096 ranks in nodes of 8. Each pipeline schedule is played through with
the measured seconds of the stages' layers; collectives of tensor parallelism cost what they were measured to cost on this node,
those of data parallelism what the cost model of hpcai/comm/select.py says with this machine's constants. The same prediction is
made for the meshes that were measured, and its error shown.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

import hpcai
from bench.harness import interleaved, machine
from bench.step import random_batch
from hpcai.comm import select
from hpcai.comm.communicator import Communicator
from hpcai.nn import gpt, models
from hpcai.parallel import schedules, stages
from hpcai.parallel.mesh import Sizes
from hpcai.strategies.sharded import memory_bytes
from hpcai.train.build import build_optimizer
from hpcai.train.options.options import Options
from hpcai.train.options.parser import parse
from hpcai.train.replica import new_replica
from hpcai.train.step import train_step

CONTEXT, NODE = 128, 8


class Costs(NamedTuple):
    """Measured seconds: of each group of layers on one sample, of the optimizer on one parameter; of a tensor-parallel collective
    and of a byte in it; parameters and bytes of a sample's activations.
    """

    groups: list[float]
    optimizer: float
    call_s: float
    byte_s: float
    parameters: int
    activation: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument(
        "--batch", type=int, default=16, help="windows of 128 bytes: all ranks together (strong), a rank (weak: half)"
    )
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    comm = hpcai.init()
    shape = ["--data", "text:random", "--layers", str(arguments.layers), "--width", str(arguments.width), "--optimizer", "adamw"]
    options = parse([*shape, "--batch", str(arguments.batch)])
    costs = measured_costs(options, comm)
    assert comm.selection()  # read by all together
    if comm.rank == 0:
        print(f"gpt of {arguments.layers} blocks, width {arguments.width}, context {CONTEXT}, {costs.parameters:,} parameters,")
        print(f"f32, AdamW, one thread a rank; medians of {arguments.blocks} interleaved blocks of 2 steps. {machine(comm)}.\n")
    strong(options, comm, costs, arguments.blocks)
    weak(options, comm, arguments.blocks)
    if comm.rank == 0:
        predicted(options, comm, costs, arguments.plot)


def splits(ranks: int) -> dict[str, list[str]]:
    """What is measured on so many ranks."""
    if ranks == 1:
        return {"1 rank": []}
    found = {f"dp={ranks}{f', ZeRO-{zero}' if zero else ''}": ["--zero", str(zero)] for zero in range(4)}
    found[f"tp={ranks}"] = ["--mesh", f"dp=1,tp={ranks}"]
    found[f"pp={ranks}, 1f1b"] = ["--mesh", f"dp=1,pp={ranks}", "--micro-batches", str(4 * ranks)]
    found[f"pp={ranks}, zb-h1"] = [*found[f"pp={ranks}, 1f1b"], "--pipeline-schedule", "zb-h1"]
    return found


def side(options: Options, flags: list[str], comm: Communicator) -> tuple[Callable[[], Any], int]:
    """A step on the mesh that the flags name, and the bytes that a rank keeps."""
    given = parse(["--data", "text:random", *flags])
    changes = {name: getattr(given, name) for name in ("mesh", "zero", "micro_batches", "pipeline", "chunks")}
    here = dataclasses.replace(options, **changes)
    _, _, dataset = random_batch(comm, 1, CONTEXT)
    mine = new_replica(here, dataset, comm)
    rng, dp = np.random.default_rng(0), mine.mesh.dp
    share = slice(options.batch * dp.rank // dp.size, options.batch * (dp.rank + 1) // dp.size)
    x, y = (rng.integers(0, 256, (options.batch, CONTEXT))[share] for _ in range(2))
    count = iter(range(1 << 30))
    return lambda: train_step(mine, x, y, options.batch, next(count), 1e-3), sum(memory_bytes(mine.buffers).values())


def strong(options: Options, comm: Communicator, costs: Costs, blocks: int) -> None:
    """The same batch on 1 rank and on all, split every way."""
    sides: dict[str, Callable[[], Any]] = {}
    memory = {}
    alone = comm.split(comm.rank)
    assert alone is not None
    step, memory["1 rank"] = side(options, [], alone)
    sides["1 rank"] = lambda: step() if comm.rank == 0 else None
    for name, flags in splits(comm.size).items() if comm.size > 1 else ():
        sides[name], memory[name] = side(options, flags, comm)
    times = interleaved(comm, sides, blocks, 2)
    if comm.rank:
        return
    print(f"## Strong scaling: a batch of {options.batch} windows\n")
    print("| | step | speed-up | kept by a rank | predicted step | off by |\n|---|---|---|---|---|---|")
    for name, values in times.items():
        seconds = statistics.median(values)
        ratio = statistics.median(a / b for a, b in zip(times["1 rank"], values, strict=True))
        guess = predict(costs, options, named(name), options.batch, comm)
        print(
            f"| {name} | {1e3 * seconds:.1f} ms | {ratio:.2f} | {memory[name] / 2**20:.1f} MiB | {1e3 * guess:.1f} ms | "
            f"{guess / seconds - 1:+.0%} |"
        )
    if comm.size > 1:
        plain = times[f"dp={comm.size}"]
        against = statistics.median(b / a for a, b in zip(plain, times[f"dp={comm.size}, ZeRO-1"], strict=True))
        print(f"\nZeRO-1 takes {against:.3f} of plain data parallelism's step.\n")


def weak(options: Options, comm: Communicator, blocks: int) -> None:
    """Half the batch on 1 rank, and that for every rank on all."""
    each = options.batch // 2
    alone = comm.split(comm.rank)
    assert alone is not None
    one, _ = side(dataclasses.replace(options, batch=each), [], alone)
    sides: dict[str, Callable[[], Any]] = {"1 rank": lambda: one() if comm.rank == 0 else None}
    for name in (f"dp={comm.size}", f"dp={comm.size}, ZeRO-1") if comm.size > 1 else ():
        sides[name], _ = side(dataclasses.replace(options, batch=each * comm.size), splits(comm.size)[name], comm)
    times = interleaved(comm, sides, blocks, 2)
    if comm.rank == 0:
        print(f"## Weak scaling: a batch of {each} windows a rank\n\n| | step | efficiency |\n|---|---|---|")
        for name, values in times.items():
            ratio = statistics.median(a / b for a, b in zip(times["1 rank"], values, strict=True))
            print(f"| {name} | {1e3 * statistics.median(values):.1f} ms | {ratio:.0%} |")
        print()


def named(name: str) -> tuple[Sizes, str, int]:
    """Mesh, schedule and micro-batches of a side."""
    if name == "1 rank":
        return Sizes(), "1f1b", 1
    axis, count = name.split(",")[0].split("=")
    schedule = name.split(", ")[1] if axis == "pp" else "1f1b"
    return Sizes(**{axis: int(count)}), schedule, 4 * int(count) if axis == "pp" else 1


def measured_costs(options: Options, comm: Communicator) -> Costs:
    """Measured on rank 0 alone, but for the collectives."""
    samples, model = 4, gpt.gpt(gpt.Shape(options.layers, options.width, options.heads, CONTEXT))
    groups = stages.measure(model, np.zeros((samples, CONTEXT), np.int64), np.dtype(np.float32)) if comm.rank == 0 else []
    flat = models.initialise(model, 0)
    optimizer = build_optimizer(options, model)
    grads, state, times = flat.copy(), optimizer.init(flat), []
    for _ in range(5):
        begin = perf_counter()
        optimizer.update(flat, grads, state, 0, 1e-9, 1.0)
        times.append(perf_counter() - begin)
    call_s, byte_s = collective(comm)
    seconds = [group.seconds / samples for group in comm.allgather_object(groups)[0]]
    return Costs(seconds, min(times) / flat.size, call_s, byte_s, flat.size, 4 * CONTEXT * options.width)


def collective(comm: Communicator) -> tuple[float, float]:
    """Seconds of a call and of a byte of an allgather followed by a reduce-scatter among these ranks."""
    if comm.size == 1:
        return 1e-6, 1e-10
    points = []
    for n in (1024, 1 << 19):
        x, times = comm.symmetric_empty(n, np.float32), []
        x[:] = 0
        for _ in range(30):
            comm.barrier()
            begin = perf_counter()
            comm.allgather(x)
            comm.reduce_scatter(x)
            times.append(perf_counter() - begin)
        points.append(float(comm.allreduce(np.array([statistics.median(times)]), "max")[0]))
    byte_s = (points[1] - points[0]) / (4 * (1 << 19))
    return points[0], byte_s


def predict(costs: Costs, options: Options, split: tuple[Sizes, str, int], batch: int, comm: Communicator) -> float:
    """Seconds of a step: the pipeline's timeline, the sum over data-parallel ranks, the optimizer."""
    axes, schedule, micros = split
    samples = batch / axes.dp / micros
    layers = [seconds * samples / axes.tp for seconds in costs.groups]
    if axes.tp > 1:  # forward and backward gather and scatter once each in every group
        layers = [seconds + 2 * (costs.call_s + costs.byte_s * costs.activation * samples) for seconds in layers]
    slowest = max(sum(layers[span]) for span in stages.cut(layers, axes.pp))
    timelines = schedules.simulate(
        schedules.plan(schedule, axes.pp, micros),
        dict.fromkeys("FIW", slowest / 3),
        wire_s=costs.call_s + costs.byte_s * costs.activation * samples,
    )
    here = costs.parameters / (axes.tp * axes.pp)
    end = max(works[-1].end for works in timelines)
    return end + reduction(4 * here, axes, costs, comm) + costs.optimizer * here


def reduction(nbytes: float, axes: Sizes, costs: Costs, comm: Communicator) -> float:
    """Seconds of the gradients' all-reduce."""
    if axes.dp == 1:
        return 0.0
    on_node = max(1, min(axes.dp, NODE // axes.tp))
    if axes.dp == on_node:
        return costs.call_s + costs.byte_s * nbytes
    shape = select.Shape(-(-axes.dp // on_node), on_node, axes.dp)
    constants = comm.selection().constants._replace(library_call_s=0.0, library_byte_s=0.0)
    return select.predict(select.choose(int(nbytes), shape, constants), int(nbytes), shape, constants)


def predicted(options: Options, comm: Communicator, costs: Costs, plot: Path | None) -> None:
    """Weak scaling, half the batch for every rank, from 1 to 4,096 ranks. Prediction, not measurement."""
    each = options.batch // 2
    kinds: dict[str, Callable[[int], tuple[Sizes, str, int] | None]] = {
        "dp": lambda n: (Sizes(dp=n), "1f1b", 1),
        "dp x tp=4": lambda n: (Sizes(dp=n // 4, tp=4), "1f1b", 1) if n >= 4 else None,
        "dp x pp=4, 1f1b": lambda n: (Sizes(dp=n // 4, pp=4), "1f1b", 16) if n >= 4 else None,
        "dp x pp=4, zb-h1": lambda n: (Sizes(dp=n // 4, pp=4), "zb-h1", 16) if n >= 4 else None,
        "dp x tp=2 x pp=2, zb-h1": lambda n: (Sizes(dp=n // 4, tp=2, pp=2), "zb-h1", 16) if n >= 4 else None,
    }
    one = predict(costs, options, (Sizes(), "1f1b", 1), each, comm)
    rows: dict[str, list[float | None]] = {}
    print(f"## PREDICTION, not measured: weak scaling to 4,096 ranks, {each} windows a rank, nodes of {NODE}\n")
    print(f"Constants of the network: {comm.selection().source} ({comm.selection().constants.message_s * 1e6:.0f} us a message,")
    print(f"{1e-9 / comm.selection().constants.network_byte_s:.1f} GB/s). Efficiency against one rank.\n")
    print(f"| ranks | {' | '.join(kinds)} |\n|---{'|---' * len(kinds)}|")
    for power in range(13):
        n, cells = 1 << power, []
        for name, make in kinds.items():
            split = make(n)
            efficiency = one / predict(costs, options, split, each * n, comm) if split else None
            rows.setdefault(name, []).append(efficiency)
            cells.append(f"{efficiency:.0%}" if efficiency else "")
        print(f"| {n:,} | {' | '.join(cells)} |")
    if plot:
        draw(plot, rows)


def draw(path: Path, rows: dict[str, list[float | None]]) -> None:
    """Predicted efficiency over ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, values in rows.items():
        points = [(1 << power, 100 * value) for power, value in enumerate(values) if value is not None]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axes.set(xlabel="ranks", ylabel="weak-scaling efficiency, %", xscale="log", title="PREDICTION (simulated, not measured)")
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 105)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
