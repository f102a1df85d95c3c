"""What it costs to notice stalls and mismatches, with detection on and off in turn in the same processes, on the node path.

    mpirun -n 2 python -m bench.detectors

Off means that calls are not compared and waits are not timed. Sides change places after a few calls, hundreds of times, without a
pause. A round's time is the slowest rank's. On a machine that others use too the mean and even the median say how busy they were;
so the figure is the difference between the quickest tenths (the 10 % quantiles) of both sides, with the range that holds it in 95
of 100 resamplings; medians stand beside. What the watch's thread takes, which wakes every few seconds, is timed by itself.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import hpcai
from bench import step
from bench.harness import machine
from hpcai.comm.communicator import Communicator
from hpcai.comm.diagnosis import watch

SIZES = (8, 64, 512, 4096, 8192, 65536)
HEAD = "off | on | difference | 95 % | medians off, on |\n|---|---|---|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.detectors", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000, help="rounds for each size")
    parser.add_argument("--calls", type=int, default=50, help="all-reduces in a round")
    parser.add_argument("--steps", type=int, default=600, help="steps of each side")
    arguments = parser.parse_args()
    comm = hpcai.init()
    if not comm.shares_memory:
        raise SystemExit("bench.detectors wants ranks that share memory, and the native kernels")
    say(comm, f"{comm.size} ranks on one node. {machine(comm)}.\n")
    say(comm, f"| all-reduce, f32 | array | {HEAD}---|")
    for nbytes in SIZES:
        for kind in ("symmetric", "plain"):
            n = nbytes // 4
            x = comm.symmetric_empty(n) if kind == "symmetric" else np.empty(n, np.float32)
            x[:] = 0
            off, on = alternating(comm, lambda x=x: comm.allreduce(x), arguments.rounds, arguments.calls)  # type: ignore[misc]
            size = f"{nbytes} B" if nbytes < 1024 else f"{nbytes >> 10} KiB"
            say(comm, f"| {size} | {kind} | {row(1e6 * off, 1e6 * on, 'us')} |")
    options = step.chosen(argparse.Namespace(model="mlp", hidden="1024,1024"))
    x, y, dataset = step.random_batch(comm, 128)
    run, _ = step.hpcai_side(options, comm, x, y, dataset)
    say(comm, f"\n| step of MLP 784-1024-1024-10, batch 128 a rank | {HEAD}")
    off, on = alternating(comm, run, arguments.steps, 1)
    say(comm, f"| one thread a rank | {row(1e3 * off, 1e3 * on, 'ms')} |")
    assert watch.watch is not None
    begin = perf_counter()
    pauses = [watch.watch.look() for _ in range(1000)]
    share = (perf_counter() - begin) / sum(pauses)
    say(comm, f"\nThe watch's thread wakes every {pauses[0]:g} s; what it then does takes {share:.1e} of the time.")


def alternating(comm: Communicator, call: Callable[[], Any], rounds: int, inner: int) -> tuple[Any, Any]:
    """Seconds a call with detection off and on, of the slowest rank, for each round."""
    nodes = [one._memory.native for one in comm.family if one._memory is not None]
    times = np.zeros((2, rounds))
    for i in range(rounds + 2):
        for on in (False, True) if i % 2 else (True, False):
            for native in nodes:  # each rank for itself: what it leaves out concerns no other
                native.checks = on
            for _ in range(1 + inner // 10):
                call()
            begin = perf_counter()
            for _ in range(inner):
                call()
            times[int(on), i - 2] = (perf_counter() - begin) / inner  # the first two rounds are overwritten
    for native in nodes:
        native.checks = True
    comm.allreduce(times, "max")
    return times[0], times[1]


def row(off: Any, on: Any, unit: str) -> str:
    """The quickest tenths of both sides, their difference with its range, and the medians."""

    def quickest(values: Any) -> Any:
        return np.quantile(values, 0.1, axis=-1)

    rng = np.random.default_rng(0)
    index = rng.integers(0, len(off), (1000, len(off)))
    low, high = np.quantile(quickest(on[index]) - quickest(off[index]), (0.025, 0.975))
    a, b = quickest(off), quickest(on)
    difference = f"{b - a:+.3f} {unit} ({(b - a) / a:+.2%}) | {low:+.3f} to {high:+.3f}"
    return f"{a:.3f} {unit} | {b:.3f} {unit} | {difference} | {np.median(off):.3f}, {np.median(on):.3f}"


def say(comm: Communicator, text: str) -> None:
    if comm.rank == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()
