"""Two checkouts of hpcai against each other: does a change cost anything?

    python -m bench.versions ../before . --run 'step mlp' --run 'step gpt' --run 'allreduce 64K'

Each checkout has its kernels built in its own hpcai/. Both jobs live at the same time, bound to the same cores; while one works
through a block, the other sleeps in a read. Blocks alternate in random order, so that both see the same machine. A block's time
is the slowest rank's; reported are medians, and the median of the ratios of neighbouring blocks with its 95 % interval, from a
bootstrap over pairs.

    step mlp|gpt [options]         one training step of bench.step's model, with more options of hpcai.train
    allreduce BYTES [symmetric]    f32, in place; BYTES may end in K or M
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

WARM_S = 0.05
"""Seconds that a side works before its block is timed, so that its caches and the cores' clocks are as in a long run."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.versions", description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="folder of a checkout")
    parser.add_argument("now", type=Path, help="folder of another")
    parser.add_argument("--run", action="append", help="what to time; may be given several times")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=60, help="blocks of each side")
    parser.add_argument("--block-s", type=float, default=0.15, help="seconds of a block, about")
    parser.add_argument("--launcher", default="mpirun -bind-to core", help="launcher and its options, without -n")
    parser.add_argument("--path", action="append", default=[], help="a folder of packages that only the first checkout needs")
    arguments = parser.parse_args()
    print("| | before | now | now / before (95 %) |\n|---|---|---|---|")
    for run in arguments.run or ["step mlp", "step gpt", "allreduce 8"]:
        before, now = compared(arguments, run)
        ratio, low, high = interval([b / a for a, b in zip(before, now, strict=True)])
        a, b = (1e6 * statistics.median(values) for values in (before, now))
        print(f"| {run} | {a:.2f} us | {b:.2f} us | {ratio:.4f} ({low:.4f} to {high:.4f}) |", flush=True)


def compared(arguments: argparse.Namespace, run: str) -> tuple[list[float], list[float]]:
    """Seconds a call of both sides, block by block."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            Side(Path(folder) / str(i), arguments, run, [str(path.resolve()), *arguments.path * (i == 0)])
            for i, path in enumerate((arguments.before, arguments.now))
        ]
        try:
            count = max(1, round(arguments.block_s / statistics.median(sides[0].block(1) for _ in range(9))))
            rng, order = random.Random(0), [0, 1]
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(arguments.blocks):
                rng.shuffle(order)
                for i in order:
                    times[i].append(sides[i].block(count))
        finally:
            for side in sides:
                side.close()
    return times


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median, and the range that holds 95 % of the medians of samples drawn from the same ratios."""
    rng = random.Random(0)
    drawn = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), drawn[50], drawn[-51]


class Side:
    """A job of one checkout, and a socket to each of its ranks."""

    def __init__(self, address: Path, arguments: argparse.Namespace, run: str, path: list[str]):
        environment = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
        environment |= {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "HPCAI_KERNELS": "required"}
        launcher = [*shlex.split(arguments.launcher), "-n", str(arguments.ranks), sys.executable, __file__]
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(address))
            door.listen()
            door.settimeout(60)
            self.job = subprocess.Popen([*launcher, "--serve", str(address), *shlex.split(run)], env=environment, cwd=path[0])
            self.ranks = [door.accept()[0] for _ in range(arguments.ranks)]

    def block(self, count: int) -> float:
        """Seconds a call, of the slowest rank."""
        for rank in self.ranks:
            rank.sendall(f"{count}\n".encode())
        return max(float(rank.recv(100)) for rank in self.ranks) / count

    def close(self) -> None:
        """End the job."""
        for rank in self.ranks:
            rank.close()
        self.job.wait(60)


def serve(address: str, kind: str, *options: str) -> None:
    """A rank of a job: time as many calls as each line asks for, until the other end closes."""
    import numpy as np

    import hpcai

    comm = hpcai.init()
    calls: dict[str, Callable[..., Callable[[], Any]]] = {"step": a_step, "allreduce": an_allreduce}
    call = calls[kind](comm, *options)
    door = socket.socket(socket.AF_UNIX)
    door.connect(address)
    begin = perf_counter()
    call()
    warm = max(1, int(comm.allreduce(np.array([WARM_S / (perf_counter() - begin)]), "min")[0]))
    while line := door.recv(100):
        for _ in range(warm):
            call()
        comm.barrier()
        begin = perf_counter()
        for _ in range(int(line)):
            call()
        door.sendall(b"%.9f" % (perf_counter() - begin))


def a_step(comm: Any, model: str, *options: str) -> Callable[[], Any]:
    from bench import step

    try:
        from hpcai.train.options.parser import parse
    except ModuleNotFoundError:  # a checkout of before the options had a folder
        parse = importlib.import_module("hpcai.train.config").parse

    shape = {
        "mlp": ["--hidden=1024,1024", "--optimizer=momentum", "--lr=0.01"],
        "gpt": [
            "--data=text:random",
            "--layers=4",
            "--width=128",
            "--heads=4",
            "--context=128",
            "--optimizer=adamw",
            "--lr=1e-3",
        ],
    }
    x, y, dataset = step.random_batch(comm, *{"mlp": (128, 0), "gpt": (8, 128)}[model])
    return step.hpcai_side(parse([*shape[model], *options]), comm, x, y, dataset)[0]


def an_allreduce(comm: Any, size: str, kind: str = "") -> Callable[[], Any]:
    import numpy as np

    from bench.harness import size_of

    symmetric = getattr(comm, "symmetric_empty", None) or comm.empty  # as versions before called it
    x = (symmetric if kind else np.empty)(size_of(size) // 4, np.float32)
    x[:] = 0
    return lambda: comm.allreduce(x)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
