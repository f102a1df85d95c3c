"""What it costs to notice stalls and mismatches, with detection on and off in turn in the same processes, on the node path.

    mpirun -n 2 python -m bench.detectors

Off means: calls are not compared, waits are not timed, and the watch's thread is ended. Each figure is the median over rounds of
the difference between neighbours in time, a round being the mean of many calls, of the slowest rank; beside it stands the range
that holds the median in 95 of 100 resamplings.
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
from bench import step
from bench.harness import interleaved, machine
from hpcai.comm import stall, watch
from hpcai.comm.communicator import Communicator

SIZES = (8, 64, 512, 4096, 8192, 65536)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.detectors", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=150, help="rounds for each size")
    parser.add_argument("--calls", type=int, default=300, help="all-reduces in a round")
    parser.add_argument("--blocks", type=int, default=150, help="blocks of steps")
    parser.add_argument("--steps", type=int, default=4, help="steps in a block")
    parser.add_argument("--no-step", action="store_true", help="leave the mlp step out")
    arguments = parser.parse_args()
    comm = hpcai.init()
    if not comm.shares_memory:
        raise SystemExit("bench.detectors wants ranks that share memory, and the native kernels")
    say(comm, f"{comm.size} ranks on one node. {machine(comm)}.\n")
    say(comm, "| all-reduce, f32 | array | off | on | difference | 95 % |\n|---|---|---|---|---|---|")
    for nbytes in SIZES:
        for kind in ("symmetric", "plain"):
            n = nbytes // 4
            x = comm.empty(n) if kind == "symmetric" else np.empty(n, np.float32)
            x[:] = 0
            times = alternating(comm, lambda x=x: comm.allreduce(x), arguments.rounds, arguments.calls)  # type: ignore[misc]
            off, on, difference, low, high = (1e6 * value for value in compared(times))
            size = f"{nbytes} B" if nbytes < 1024 else f"{nbytes >> 10} KiB"
            say(comm, f"| {size} | {kind} | {off:.2f} us | {on:.2f} us | {difference:+.3f} us | {low:+.3f} to {high:+.3f} |")
    if arguments.no_step:
        return
    options = step.chosen(argparse.Namespace(model="mlp", hidden="1024,1024"))
    x, y, dataset = step.random_batch(comm, 128)
    run, _ = step.hpcai_side(options, comm, x, y, dataset)
    off, on, difference, low, high = compared(alternating(comm, run, arguments.blocks, arguments.steps))
    say(comm, "\n| step of MLP 784-1024-1024-10, batch 128 a rank | off | on | difference | 95 % |\n|---|---|---|---|---|")
    share = " | ".join(f"{value / off:+.2%}" for value in (difference, low))
    say(comm, f"| one thread a rank | {1e3 * off:.3f} ms | {1e3 * on:.3f} ms | {share} to {high / off:+.2%} |")


def alternating(comm: Communicator, call: Callable[[], Any], rounds: int, inner: int) -> dict[str, list[float]]:
    """Seconds a call with detection off and on. Switching is collective and is not timed."""

    def side(on: bool) -> Callable[[], Any]:
        def made() -> Any:
            if native.checks != on:
                switch(comm, on)
            return call()

        return made

    assert comm._memory is not None
    native = comm._memory.native
    return interleaved(comm, {"off": side(False), "on": side(True)}, rounds, inner, uncounted=20)


def switch(comm: Communicator, on: bool) -> None:
    """All detection on or off, on all ranks."""
    comm.barrier()
    for one in comm.family:
        if one._memory is not None:
            one._memory.native.checks = on
    if on:
        stall.watch_over(comm)
    elif watch.watch is not None:
        watch.watch.close()
    comm.barrier()


def compared(times: dict[str, list[float]]) -> tuple[float, ...]:
    """Medians of both sides, the median of the differences within rounds, and a range of that median by resampling."""
    differences = np.array(times["on"]) - np.array(times["off"])
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(differences, (2000, len(differences))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return (*(statistics.median(times[name]) for name in ("off", "on")), float(np.median(differences)), float(low), float(high))


def say(comm: Communicator, text: str) -> None:
    if comm.rank == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()
