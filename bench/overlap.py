"""How much of the communication the training step hides behind backward, with and without --overlap interleaved.

    bench/two_hosts.sh 1gbit 1 python -m bench.overlap --hidden 1024,1024 --batch 512

What can be hidden follows from the step without overlap: bucket k is ready when backward has filled it, at time r_k, and takes
c_k to reduce. On a thread that does nothing else it would be done at d_k = max(r_k, d_k-1) + c_k, so the step can be shorter
by what one after the other takes longer than the last d_k. The share of that which is gained is reported.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import hpcai
from bench.harness import interleaved, machine
from bench.step import random_batch
from hpcai.comm.communicator import Communicator
from hpcai.train.options.parser import parse
from hpcai.train.replica import Replica, new_replica
from hpcai.train.step import train_step


class Stopwatch:
    """A carrier that makes its calls in `wait`, as without overlap, and notes when each was given and how long it took: all ranks
    begin a call together, so that nobody's waiting for others counts as communication."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self.calls: list[Any] = []
        self.begin = 0.0
        self.ready: list[float] = []
        self.took: list[float] = []
        self.waited = 0.0

    def start(self, call: Any, *arguments: Any) -> None:
        """Note the time."""
        self.ready.append(perf_counter() - self.begin)
        self.calls.append((call, arguments))

    def wait(self) -> None:
        """Make the calls and time them."""
        self.waited = perf_counter() - self.begin
        for call, arguments in self.calls:
            self.comm.barrier()
            begin = perf_counter()
            call(*arguments)
            self.took.append(perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.overlap", description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", default="1024,1024")
    parser.add_argument("--batch", type=int, default=512, help="samples a rank")
    parser.add_argument("--bucket-bytes", type=int, default=1 << 20)
    parser.add_argument("--blocks", type=int, default=20, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    arguments = parser.parse_args()
    comm = hpcai.init()
    x, y, dataset = random_batch(comm, arguments.batch)

    def make(overlap: str) -> Replica:
        options = ["--hidden", arguments.hidden, "--optimizer", "momentum", "--bucket-bytes", str(arguments.bucket_bytes)]
        return new_replica(parse([*options, "--overlap", overlap]), dataset, comm)

    sides = {name: make(name) for name in ("never", "always")}
    count = iter(range(1 << 30))

    def step(mine: Replica) -> None:
        train_step(mine, x, y, comm.size * len(x), next(count), 0.01)

    possible = []
    for _ in range(5):
        watch = Stopwatch(comm)
        mine = sides["never"]
        plain, mine.carrier = mine.carrier, watch  # type: ignore[assignment]
        comm.barrier()
        watch.begin = perf_counter()
        step(mine)
        mine.carrier = plain
        possible.append(hideable(watch, comm))

    calls: dict[str, Callable[[], Any]] = {name: functools.partial(step, mine) for name, mine in sides.items()}
    times = interleaved(comm, calls, arguments.blocks, arguments.steps)
    gained = statistics.median(a - b for a, b in zip(times["never"], times["always"], strict=True))
    if comm.rank == 0:
        never, always = (1e3 * statistics.median(times[name]) for name in ("never", "always"))
        can = statistics.median(possible)
        print(f"MLP 784-{arguments.hidden.replace(',', '-')}-10, batch {arguments.batch} a rank, {comm.size} ranks.")
        print(f"{machine(comm)}\n")
        print("| without overlap | with overlap | gained | can be hidden | share |\n|---|---|---|---|---|")
        print(f"| {never:.1f} ms | {always:.1f} ms | {1e3 * gained:.1f} ms | {1e3 * can:.1f} ms | {gained / can:.0%} |")


def hideable(watch: Stopwatch, comm: Communicator) -> float:
    """How much shorter the step could be, by the slowest rank's times: see above."""
    ready, took = (comm.allreduce(np.array(values), "max") for values in (watch.ready, watch.took))
    waited = comm.allreduce(np.array([watch.waited]), "max")[0]
    done = 0.0
    for r, c in zip(ready, took, strict=True):
        done = max(done, r) + c
    return float(waited + took.sum() - max(done, waited))


if __name__ == "__main__":
    main()
