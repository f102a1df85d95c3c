"""Time to reduce a gradient over a slow link by each --compress, against the MPI library's own f32 Allreduce, taking turns.

    bench/two_hosts.sh 1gbit 1 python -m bench.compressed_step --torch    # 64 MiB: matrices of 2048 x 2048

Encoding, wire and decoding are all in the time, and error feedback is on. predicted: what hpcai.reduce.advice says beforehand,
which `python -m hpcai.doctor --compress` and `--compress auto` go by. error: of the sum of some means against the exact one.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import hpcai
from bench import torch_hooks
from bench.harness import interleaved, machine, size_of, start_gloo
from hpcai.comm.communicator import Communicator
from hpcai.reduce import advice
from hpcai.reduce.named import by_name
from hpcai.reduce.reducer import Reducer

SIDE = 2048
CHOICES = "none,bf16,fp16,fp8,int8,int8sum,int4,sign,topk:0.01,randomk:0.01,powersgd:4"
LIBRARY = "MPI_Allreduce, f32"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.compressed_step", description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=size_of, default=size_of("64M"), help="size of the gradient (K, M, G)")
    parser.add_argument("--choices", default=CHOICES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sums", type=int, default=3, help="reductions whose sum is compared with the exact one")
    parser.add_argument("--torch", action="store_true", help="also torch's hooks over Gloo")
    arguments = parser.parse_args()
    comm = hpcai.init()
    n = arguments.bytes // 4
    places = [(start, (SIDE, SIDE)) for start in range(0, n - SIDE * SIDE + 1, SIDE * SIDE)]
    gradient = np.random.default_rng(comm.rank).normal(size=n).astype(np.float32)
    mean = comm.allreduce(gradient.copy(), "mean")

    reducers = {name: by_name(name, comm.size, places=places) for name in arguments.choices.split(",")}
    wire = advice.measure_wire(comm, gradient.nbytes)
    predicted = {name: advice.predict([(n, reducer)], comm, wire).seconds for name, reducer in reducers.items()}
    sides: dict[str, Callable[[], Any]] = {LIBRARY: library(comm, gradient.copy())}
    sides |= {name: stepping(comm, reducer, gradient) for name, reducer in reducers.items()}
    torch = start_gloo(comm) if arguments.torch else None
    if torch is not None:
        sides |= torch_hooks.calls(torch, gradient, SIDE, 4)
        interleaved(comm, sides, 2, 1, uncounted=0)  # PowerSGD's hook begins after two plain steps
    first = interleaved(comm, sides, 1, 1, uncounted=0)
    times = interleaved(comm, sides, arguments.rounds, 1, uncounted=int(first[LIBRARY][0] < 1))
    errors = {name: error(comm, reducer, gradient, mean, arguments.sums) for name, reducer in reducers.items()}
    if comm.rank == 0:
        report(comm, arguments, times, predicted, errors)


def library(comm: Communicator, x: Any) -> Callable[[], Any]:
    """The library's own sum, of zeros, so that repeating it does not overflow."""
    x[:] = 0
    return lambda: comm.wire.library_allreduce(x, "sum")  # type: ignore[attr-defined]


def stepping(comm: Communicator, reducer: Reducer, gradient: Any) -> Callable[[], Any]:
    """Reduce again and again, with the state going on."""
    state, x = [reducer.init(gradient)], comm.symmetric_empty(gradient.size)  # where a training has its gradient
    x[:] = gradient

    def call() -> None:
        state[0] = reducer.reduce(x, comm, state[0]).state

    return call


def error(comm: Communicator, reducer: Reducer, gradient: Any, mean: Any, count: int) -> float:
    """Relative error of the sum of `count` reductions of the same gradient."""
    state, total = reducer.init(gradient), np.zeros_like(mean)
    for _ in range(count):
        done = reducer.reduce(gradient.copy(), comm, state)
        total, state = total + done.mean, done.state
    return float(np.linalg.norm(total / count - mean) / np.linalg.norm(mean))


def report(
    comm: Communicator,
    arguments: argparse.Namespace,
    times: dict[str, list[float]],
    predicted: dict[str, float],
    errors: dict[str, float],
) -> None:
    """A table in Markdown."""
    print(f"{arguments.bytes} bytes of f32, {comm.size} ranks. {machine(comm)}\n")
    print(f"| | median | MPI f32 takes | bf16 takes | predicted | error of the sum of {arguments.sums} |")
    print("|---|---|---|---|---|---|")
    for name, values in times.items():
        cells = [f"{1e3 * statistics.median(values):.1f} ms"]
        for other in (LIBRARY, "bf16"):
            against = times.get(other)
            cells.append(f"{statistics.median(b / a for a, b in zip(values, against, strict=True)):.2f}x" if against else "")
        if name in predicted:
            off = predicted[name] / statistics.median(values) - 1
            cells += [f"{1e3 * predicted[name]:.1f} ms ({off:+.0%})", f"{errors[name]:.4f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
