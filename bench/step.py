"""Step time of data-parallel training against PyTorch DDP over Gloo, interleaved in the same processes.

    mpirun -n 2 python -m bench.step            # MLP 784-1024-1024-10, batch 128 a rank, SGD with momentum, f32, one thread

Both train the same layers on the same batch with the same initial parameters, and the losses of the first steps are compared
before anything is timed. Then blocks of steps alternate, A B A B; a block's time is the slowest rank's; medians are reported.
Without torch only hpcai is timed.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools

import numpy as np

import hpcai
from bench.harness import interleaved, machine, start_gloo
from hpcai.arena import views
from hpcai.comm.communicator import Communicator
from hpcai.data.dataset import Dataset
from hpcai.nn import models
from hpcai.train import config
from hpcai.train.replica import replica
from hpcai.train.step import train_step

LR, MU = 0.01, 0.9


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.step", description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", default="1024,1024")
    parser.add_argument("--batch", type=int, default=128, help="samples a rank")
    parser.add_argument("--steps", type=int, default=10, help="steps in a block")
    parser.add_argument("--blocks", type=int, default=30, help="blocks of each side")
    arguments = parser.parse_args()
    comm = hpcai.init()
    options = config.parse(["--hidden", arguments.hidden, "--optimizer", "momentum", "--lr", str(LR), "--momentum", str(MU)])
    x, y, dataset = random_batch(comm, arguments.batch)

    sides: dict[str, Callable[[], float]] = {}
    ours, parts = hpcai_side(options, comm, x, y, dataset)
    sides["hpcai"] = ours
    theirs = torch_side(options, comm, x, y)
    if theirs:
        sides["torch DDP over Gloo"] = theirs

    losses = {name: [step() for _ in range(5)] for name, step in sides.items()}
    for name, values in losses.items():
        if not np.allclose(values, losses["hpcai"], rtol=1e-4):
            raise SystemExit(f"{name} computes something else: losses {values}, hpcai {losses['hpcai']}")
    parts.clear()

    times = interleaved(comm, sides, arguments.blocks, arguments.steps)
    if comm.rank == 0:
        report(arguments, comm, times, parts)


def random_batch(comm: Communicator, batch: int) -> tuple[Any, Any, Dataset]:
    """This rank's samples and labels, and the data set that they could be from."""
    rng = np.random.default_rng(comm.rank)
    empty = np.zeros((0, 784), np.float32)
    dataset = Dataset("random", empty, np.zeros(0, np.int64), empty, np.zeros(0, np.int64), shape=(784,), classes=10)
    return rng.normal(size=(batch, 784)).astype(np.float32), rng.integers(0, 10, batch), dataset


def hpcai_side(
    options: config.Options, comm: Communicator, x: Any, y: Any, dataset: Dataset
) -> tuple[Callable[[], float], list[tuple[float, ...]]]:
    """One step of hpcai, and a list that collects where its time goes."""
    mine = replica(options, dataset, comm)
    parts: list[tuple[float, ...]] = []
    update = mine.optimizer.update
    spent = [0.0]

    def timed(*arguments: Any) -> None:
        begin = perf_counter()
        update(*arguments)
        spent[0] = perf_counter() - begin

    mine.optimizer = mine.optimizer._replace(update=timed)
    count = [0]

    def step() -> float:
        done = train_step(mine, x, y, comm.size * len(x), count[0], LR)
        count[0] += 1
        parts.append((done.step_s, done.comm_s, spent[0]))
        return done.loss_sum / done.targets

    return step, parts


def torch_side(options: config.Options, comm: Communicator, x: Any, y: Any) -> Callable[[], float] | None:
    """One step of PyTorch: the same layers from the same parameters, or None where torch is not installed."""
    torch = start_gloo(comm)
    if torch is None:
        return None
    widths = [784, *options.hidden, 10]
    layers: list[Any] = []
    for a, b in itertools.pairwise(widths):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    model = models.mlp((784,), 10, models.default_loss(10), options.hidden)
    initial = views(models.initialise(model, options.seed), model.layout)
    with torch.no_grad():
        for i, layer in enumerate(layer for layer in net if isinstance(layer, torch.nn.Linear)):
            layer.weight.copy_(torch.from_numpy(initial[f"linear{i + 1}.weight"].T.copy()))
            layer.bias.copy_(torch.from_numpy(initial[f"linear{i + 1}.bias"]))
    parallel = torch.nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(parallel.parameters(), LR, MU)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(parallel(inputs), labels)
        loss.backward()
        optimizer.step()
        return comm.allreduce(np.array([loss.item()]), "mean")[0]

    return step


def report(
    arguments: argparse.Namespace, comm: Communicator, times: dict[str, list[float]], parts: list[tuple[float, ...]]
) -> None:
    """A table in Markdown."""
    print(f"MLP 784-{arguments.hidden.replace(',', '-')}-10, batch {arguments.batch} a rank, {comm.size} ranks, f32, one thread")
    print(f"a rank, {arguments.blocks} interleaved blocks of {arguments.steps} steps. {machine(comm)}.\n")
    print("| | median | fastest block | slowest block | ratio to hpcai |\n|---|---|---|---|---|")
    for name, values in times.items():
        ratio = statistics.median(b / a for a, b in zip(times["hpcai"], values, strict=True))
        milliseconds = " | ".join(f"{1e3 * f(values):.2f} ms" for f in (statistics.median, min, max))
        print(f"| {name} | {milliseconds} | {ratio:.2f} |")
    step, communication, update = (1e3 * statistics.median(column) for column in zip(*parts, strict=True))
    print(f"\nhpcai's step on rank 0: forward, backward and gradient norm {step - communication - update:.2f} ms,")
    print(f"communication (with waiting) {communication:.2f} ms, optimizer {update:.2f} ms.")


if __name__ == "__main__":
    main()
