"""What a checkpoint costs the steps beside which it is written.

    mpirun -n 2 python -m bench.checkpoint      # MLP 784-1024-1024-10, batch 128 a rank, SGD with momentum, f32, one thread

Blocks of steps with and without a checkpoint alternate. A block with one takes the copy before its first step, writes while the
steps go on, and ends when the checkpoint is durable; a block's time is the slowest rank's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from time import perf_counter, process_time, thread_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import hpcai
from bench.harness import interleaved, machine
from bench.step import random_batch
from hpcai.checkpoint import format, storage
from hpcai.comm.communicator import Communicator
from hpcai.train import resume
from hpcai.train.history import Progress
from hpcai.train.options.parser import parse
from hpcai.train.replica import new_replica
from hpcai.train.saving import Saver
from hpcai.train.step import train_step


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.checkpoint", description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", default="1024,1024")
    parser.add_argument("--batch", type=int, default=128, help="samples a rank")
    parser.add_argument("--steps", type=int, default=20, help="steps in a block")
    parser.add_argument("--blocks", type=int, default=60, help="blocks of each side")
    parser.add_argument("--folder", help="where checkpoints go: a folder or a URL (a new folder here)")
    arguments = parser.parse_args()
    comm = hpcai.init()
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=".") as made:
        folder = arguments.folder or comm.allgather_object(made)[0]
        measured = measure(arguments, comm, folder)
        comm.barrier()
    if comm.rank == 0:
        report(arguments, comm, *measured)


def measure(arguments: argparse.Namespace, comm: Communicator, folder: str) -> tuple[Any, ...]:
    """Seconds of blocks of each side, seconds of copies on this rank, the share of a block's time for which the writing thread
    has a core, on the rank where it is longest, and a checkpoint's bytes."""
    options = parse(["--hidden", arguments.hidden, "--optimizer", "momentum", "--lr", "0.01", "--momentum", "0.9"])
    x, y, dataset = random_batch(comm, arguments.batch)
    mine = new_replica(options, dataset, comm)
    place = storage.place(Path(folder).absolute() if "://" not in folder else folder)
    saver = Saver(mine, comm, place, keep=2)
    count, copies, processor = [0], list[float](), list[float]()

    def block(checkpoints: bool) -> None:
        others, started = process_time() - thread_time(), perf_counter()
        if checkpoints:
            begin = perf_counter()
            resume.save(options, mine, Progress(count[0]), saver)
            copies.append(perf_counter() - begin)
        for _ in range(arguments.steps):
            assert options.lr is not None
            done = train_step(mine, x, y, comm.size * len(x), count[0], options.lr)
            saver.heard(done.votes)
            count[0] += 1
        saver.finish()
        if checkpoints:
            processor.append((process_time() - thread_time() - others) / (perf_counter() - started))

    sides = {"without": lambda: block(False), "with one checkpoint": lambda: block(True)}
    times = interleaved(comm, sides, arguments.blocks, 1)
    saver.close()
    written = 0
    if comm.rank == 0 and "://" not in folder:
        name = place.names()[-1]
        written = sum(file.stat().st_size for file in (Path(folder) / name).iterdir())
        _, found = format.read(Path(folder) / name)
        assert np.isfinite(found.arrays["params"]).all()
    comm.barrier()
    return times, copies, max(comm.allgather_object(statistics.median(processor))), written


def report(
    arguments: argparse.Namespace,
    comm: Communicator,
    times: dict[str, list[float]],
    copies: list[float],
    share: float,
    written: int,
) -> None:
    """A table in Markdown."""
    steps = {name: [1e3 * one / arguments.steps for one in values] for name, values in times.items()}
    pairs = zip(times["without"], times["with one checkpoint"], strict=True)
    print(f"MLP 784-{arguments.hidden.replace(',', '-')}-10, batch {arguments.batch} a rank, {comm.size} ranks, SGD with")
    print(f"momentum, f32, one thread a rank, {arguments.blocks} interleaved blocks of {arguments.steps} steps; a checkpoint has")
    print(f"{written / 1e6:.1f} MB. {machine(comm)}.\n")
    print("| a block of steps | median step | fastest block | slowest block |\n|---|---|---|---|")
    for name, values in steps.items():
        print(f"| {name} | " + " | ".join(f"{f(values):.2f} ms" for f in (statistics.median, min, max)) + " |")
    medians = statistics.median(times["with one checkpoint"]) / statistics.median(times["without"]) - 1
    paired = statistics.median(b / a for a, b in pairs) - 1
    print(
        f"\nOverhead: {medians:.1%} by medians, {paired:.1%} by neighbouring blocks. The copy, before which a step waits, takes"
    )
    print(f"{1e3 * statistics.median(copies[1:]):.2f} ms; the thread that writes has a core for {share:.2%} of a block's time.")


if __name__ == "__main__":
    main()
