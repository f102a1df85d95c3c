"""Step time of data-parallel training against PyTorch DDP and JAX, both over Gloo, interleaved in the same processes.

    mpirun -n 2 python -m bench.step            # MLP 784-1024-1024-10, batch 128 a rank, SGD with momentum, f32, one thread
    mpirun -n 2 python -m bench.step --model gpt   # 4 blocks of width 128, 8 windows of 128 bytes a rank, AdamW
    mpirun -n 1 -bind-to core python -m bench.step --against jax

All sides train the same layers on the same batch from the same initial parameters, and the losses of the first steps are compared
before anything is timed. Then blocks of steps alternate; a block's time is the slowest rank's; medians are reported. PyTorch runs
eagerly, and a gpt compiled (torch.compile) too. Of what is not installed nothing is timed.
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
from bench import jax_models
from bench.harness import interleaved, machine, some_of, start_gloo
from bench.torch_gpt import torch_gpt
from hpcai.arena import views
from hpcai.comm.communicator import Communicator
from hpcai.data.dataset import Dataset
from hpcai.nn import models
from hpcai.strategies.sharded import Sharded
from hpcai.strategies.strategy import part
from hpcai.train.build import build_model
from hpcai.train.options.options import Options
from hpcai.train.options.parser import parse
from hpcai.train.replica import new_replica
from hpcai.train.step import train_step

LR, MU = 0.01, 0.9
ADAM_LR = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.step", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("mlp", "gpt"), default="mlp")
    parser.add_argument("--hidden", default="1024,1024")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, help="samples a rank (mlp 128, gpt 8)")
    parser.add_argument("--steps", type=int, help="steps in a block (mlp 10, gpt 4)")
    parser.add_argument("--blocks", type=int, default=30, help="blocks of each side")
    parser.add_argument("--against", default="torch", type=some_of("torch", "jax"), help="torch, jax")
    arguments = parser.parse_args()
    arguments.batch = arguments.batch or (128 if arguments.model == "mlp" else 8)
    arguments.steps = arguments.steps or (10 if arguments.model == "mlp" else 4)
    comm = hpcai.init()
    options = chosen(arguments)
    x, y, dataset = random_batch(comm, arguments.batch, arguments.context if arguments.model == "gpt" else 0)

    sides: dict[str, Callable[[], float]] = {}
    ours, parts = hpcai_side(options, comm, x, y, dataset)
    sides["hpcai"] = ours
    if "torch" in arguments.against:
        sides |= torch_sides(options, comm, x, y, dataset)
    if "jax" in arguments.against:
        sides |= jax_side(options, comm, x, y, dataset)

    losses = {name: [step() for _ in range(5)] for name, step in sides.items()}
    for name, values in losses.items():
        if not np.allclose(values, losses["hpcai"], rtol=1e-4):
            raise SystemExit(f"{name} computes something else: losses {values}, hpcai {losses['hpcai']}")
    parts.clear()

    times = interleaved(comm, sides, arguments.blocks, arguments.steps)
    if comm.rank == 0:
        report(arguments, comm, times, parts)


def chosen(arguments: argparse.Namespace) -> Options:
    """hpcai's options for the model."""
    if arguments.model == "mlp":
        return parse(["--hidden", arguments.hidden, "--optimizer", "momentum", "--lr", str(LR), "--momentum", str(MU)])
    shape = [f"--{name}={getattr(arguments, name)}" for name in ("layers", "width", "heads", "context")]
    return parse(["--data", "text:random", *shape, "--optimizer", "adamw", "--lr", str(ADAM_LR)])


def random_batch(comm: Communicator, batch: int, context: int = 0) -> tuple[Any, Any, Dataset]:
    """This rank's samples and targets, windows of text with a context, and the data set that they could be from."""
    rng = np.random.default_rng(comm.rank)
    none = np.zeros(0, np.int64)
    if context:
        content = np.zeros(0, np.uint8)
        dataset = Dataset("random", content, none, content, none, shape=(context,), classes=256, context=context)
        return rng.integers(0, 256, (batch, context)), rng.integers(0, 256, (batch, context)), dataset
    empty = np.zeros((0, 784), np.float32)
    dataset = Dataset("random", empty, none, empty, none, shape=(784,), classes=10)
    return rng.normal(size=(batch, 784)).astype(np.float32), rng.integers(0, 10, batch), dataset


def hpcai_side(
    options: Options, comm: Communicator, x: Any, y: Any, dataset: Dataset
) -> tuple[Callable[[], float], list[tuple[float, ...]]]:
    """One step of hpcai, and a list that collects where its time goes."""
    mine = new_replica(options, dataset, comm)
    parts: list[tuple[float, ...]] = []
    base = part(mine.state, Sharded)
    assert base is not None
    update = base.optimizer.update
    spent = [0.0]

    def timed(*arguments: Any) -> None:
        begin = perf_counter()
        update(*arguments)
        spent[0] = perf_counter() - begin

    base.optimizer = base.optimizer._replace(update=timed)
    count = [0]

    def step() -> float:
        assert options.lr is not None
        done = train_step(mine, x, y, comm.size * len(x), count[0], options.lr)
        count[0] += 1
        parts.append((done.step_s, done.comm_s, spent[0]))
        return done.loss_sum / done.targets

    return step, parts


def torch_sides(options: Options, comm: Communicator, x: Any, y: Any, dataset: Dataset) -> dict[str, Callable[[], float]]:
    """Steps of PyTorch: the same layers from the same parameters; none where torch is not installed."""
    torch = start_gloo(comm)
    if torch is None:
        return {}
    model = build_model(options, dataset)
    initial = {key: torch.from_numpy(value.copy()) for key, value in views(models.initialise(model, 0), model.layout).items()}
    if options.model == "mlp":
        return {"torch DDP over Gloo": torch_step(torch, torch_mlp(torch, options, initial), comm, x, y, momentum)}
    return {
        "torch DDP over Gloo": torch_step(torch, torch_gpt(options, initial), comm, x, y, adamw),
        "torch DDP over Gloo, compiled": torch_step(torch, torch_gpt(options, initial), comm, x, y, adamw, torch.compile),
    }


def jax_side(options: Options, comm: Communicator, x: Any, y: Any, dataset: Dataset) -> dict[str, Callable[[], float]]:
    """A step of JAX: the same layers from the same parameters; none where JAX is not installed."""
    jax = jax_models.load(comm)
    if jax is None:
        return {}
    model = build_model(options, dataset)
    initial = {key: value.copy() for key, value in views(models.initialise(model, 0), model.layout).items()}
    name = f"JAX {jax.__version__}{' over Gloo' * (comm.size > 1)}"
    return {name: jax_models.step(jax, options, comm, initial, x, y)}


def momentum(torch: Any, parameters: Any) -> Any:
    return torch.optim.SGD(parameters, LR, MU)


def adamw(torch: Any, parameters: Any) -> Any:
    return torch.optim.AdamW(parameters, ADAM_LR, weight_decay=0.01, fused=True)


def torch_mlp(torch: Any, options: Options, initial: dict[str, Any]) -> Any:
    """Linear layers and ReLU."""
    widths = [784, *options.hidden, 10]
    layers: list[Any] = []
    for a, b in itertools.pairwise(widths):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for i, layer in enumerate(layer for layer in net if isinstance(layer, torch.nn.Linear)):
            layer.weight.copy_(initial[f"linear{i + 1}.weight"].T)
            layer.bias.copy_(initial[f"linear{i + 1}.bias"])
    return net


def torch_step(
    torch: Any, net: Any, comm: Communicator, x: Any, y: Any, optimize: Any, compiled: Any = lambda net: net
) -> Callable[[], float]:
    """One step of a network in DDP."""
    parallel = compiled(torch.nn.parallel.DistributedDataParallel(net))
    optimizer = optimize(torch, net.parameters())
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y).reshape(-1)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(parallel(inputs).reshape(len(labels), -1), labels)
        loss.backward()
        optimizer.step()
        return comm.allreduce(np.array([loss.item()]), "mean")[0]

    return step


def report(
    arguments: argparse.Namespace, comm: Communicator, times: dict[str, list[float]], parts: list[tuple[float, ...]]
) -> None:
    """A table in Markdown."""
    name = f"MLP 784-{arguments.hidden.replace(',', '-')}-10"
    if arguments.model == "gpt":
        name = f"gpt of {arguments.layers} blocks, width {arguments.width}, {arguments.heads} heads, context {arguments.context}"
    print(f"{name}, batch {arguments.batch} a rank, {comm.size} ranks, f32, one thread")
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
