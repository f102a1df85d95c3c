"""`python -m hpcai.doctor`: what this machine's MPI, launcher and memory can do, found out by trying.

    mpirun -n 4 python -m hpcai.doctor           # a table of what works, with what to do about what does not
    mpirun -n 4 python -m hpcai.doctor --tune    # also measure the all-reduce algorithms across nodes and keep what was found
    mpirun -n 4 python -m hpcai.doctor --compress --data digits --model mlp    # also predict what each --compress would take

With --compress the options of hpcai.train may follow, which name data, model and batch.

Started the way a training run is started, it says what that run would get.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import numpy as np

import hpcai
from hpcai import ops, tuning
from hpcai.comm import select
from hpcai.comm.communicator import Communicator
from hpcai.comm.launch import cores
from hpcai.comm.launch.launcher import launch
from hpcai.errors import HpcaiError, one_line
from hpcai.train.options.arguments import Parser, whole_number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with these arguments (default: the command line's); returns the exit code, 1 if something does not work."""
    try:
        chosen, training = _parsed(arguments)
        comm = hpcai.init()
    except HpcaiError as error:
        if launch().rank == 0:
            print(f"hpcai.doctor: error: {one_line(error)}", file=sys.stderr, flush=True)
        else:
            time.sleep(1.0)  # let rank 0 speak: the launcher ends all ranks with the first that ends so
        return error.exit_code
    wrong = report(comm)
    if chosen.tune:
        wrong += tuning.tune(comm, chosen.largest or tuning.SIZES[-1])
    if chosen.compress:
        wrong += compress(comm, training)
    return 1 if wrong else 0


def _parsed(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The doctor's own options, and those of hpcai.train that may follow --compress."""
    parser, size = Parser("hpcai.doctor", __doc__), whole_number(tuning.SIZES[0], tuning.SIZES[-1])
    parser.add_argument("--tune", action="store_true", help="measure the all-reduce algorithms and keep the fitted constants")
    parser.add_argument("--largest", type=size, help=f"bytes of the longest array that --tune reduces ({tuning.SIZES[-1]})")
    parser.add_argument("--compress", action="store_true", help="predict a training step for each --compress of hpcai.train")
    with contextlib.redirect_stdout(sys.stdout if launch().rank == 0 else io.StringIO()):  # --help
        chosen, training = parser.parse_known_args(arguments)
    if training and not chosen.compress:
        parser.error(f"unknown: {' '.join(training)}{parser.meant(training[0])} (options of hpcai.train need --compress)")
    if chosen.largest and not chosen.tune:
        parser.error("--largest bounds what --tune measures; give that too")
    return chosen, training


def report(comm: Communicator) -> int:
    """Print the findings on rank 0; returns the number of failed checks, equal on all ranks. Collective."""
    failed = 0
    for name, text, fine in findings(comm):
        failed += not fine
        if comm.rank == 0:
            print(f"{name:<18} {text}{'' if fine else '   <- look here'}", flush=True)
    return failed


def findings(comm: Communicator) -> Iterator[tuple[str, str, bool]]:
    """Yield (name, what was found, whether it is fine) for each check, alike on all ranks. Collective."""
    shape = comm.selection().shape
    said = launch()
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "mpi4py", "numba"))
    yield "hpcai", f"{hpcai.__version__}; Python {platform.python_version()}, {packages}", True
    yield "kernels", *kernels()
    yield "MPI", comm.wire.describe(), True
    yield "launcher", f"{said.name or 'none'}, {comm.size} rank{'s' if comm.size > 1 else ''}", True
    per_node = f"{shape.per_node} on each" if shape.per_node else "of different sizes"
    yield "nodes", f"{shape.nodes}, {per_node}", True
    bound = len(os.sched_getaffinity(0))
    crowded = comm.split_by_node().size > (os.cpu_count() or 1)
    yield "cores", f"{bound} of {os.cpu_count()} for this rank{'; more ranks than cores' if crowded else ''}", True
    threads = all(comm.allgather_object(comm.wire.serves_threads()))
    yield "BLAS", *comm.on_root(blas_kernel)
    yield "threads", "a thread can reduce while another computes" if threads else "MPI serves the main thread only", threads
    yield "shared memory", *shared_memory(comm)
    yield "all-reduce", plan(comm), True
    for algorithm in tuning.runnable(comm):
        right = sums_are_right(comm, algorithm)
        yield f"  {algorithm}", "sums are right" if right else "SUMS ARE WRONG", right


def kernels() -> tuple[str, bool]:
    """Which kernels reduce, and whether they are native."""
    if not ops.is_native():
        return "not built: numpy folds instead, slower (reinstall with a C++17 compiler)", False
    return f"native, {ops.lanes()}", True


def blas_kernel() -> tuple[str, bool]:
    """Which BLAS kernel multiplies matrices, and whether it is the processor's own."""
    chosen, pinned = cores.blas(), os.environ.get(cores.PIN)
    if not pinned or (own := cores.unpinned_blas()) == chosen:
        return chosen, True
    return f"{chosen}, as ${cores.PIN} says; without it {own}, which is often much faster: unset {cores.PIN}", False


def shared_memory(comm: Communicator) -> tuple[str, bool]:
    """How the ranks of a node share memory, or why they do not, and whether that is fine. Collective."""
    node = comm.split_by_node()
    states = comm.allgather_object(_shared_memory_here(node))
    return next((state for state in states if not state[1]), states[0])


def _shared_memory_here(node: Communicator) -> tuple[str, bool]:
    if node.size == 1:
        return "one rank on the node: nothing to share", True
    if node.reaches:
        return (
            "ranks address each other's symmetric arrays, and reach private ones by cross-memory attach (those of at most "
            f"{tuning.size_in_words(node.staged_bytes)} are copied through segments)",
            True,
        )
    if node.shares_memory:
        why = "HPCAI_REACH=0" if os.environ.get("HPCAI_REACH") == "0" else "forbidden by ptrace_scope or a container"
        return (
            f"ranks address each other's symmetric arrays; others are copied through segments (cross-memory attach: {why})",
            True,
        )
    if os.environ.get("HPCAI_NODE") == "0":
        return "switched off by HPCAI_NODE=0: messages instead", False
    if not ops.is_native():
        return "needs the native kernels: messages instead", False
    free = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    space = f"{free.f_bavail * free.f_frsize >> 20} MiB free in /dev/shm" if free else "there is no /dev/shm"
    return f"could not be had ({space}): messages instead; start the container with a larger --shm-size", False


def plan(comm: Communicator) -> str:
    """The algorithms that "auto" takes here, in words, with the sizes from which it takes them. Collective."""
    preferred = os.environ.get("HPCAI_ALGORITHM")
    if preferred:
        return f"{preferred}, as $HPCAI_ALGORITHM says"
    if comm.size == 1:
        return "nothing to do"
    if comm.shares_memory:
        return "node: through shared memory"
    shape, constants, source = comm.selection()
    names = [(select.choose(nbytes, shape, constants), nbytes) for nbytes in tuning.SIZES]
    changes = [(name, nbytes) for i, (name, nbytes) in enumerate(names) if i == 0 or name != names[i - 1][0]]
    parts = [name if nbytes == tuning.SIZES[0] else f"{name} from {tuning.size_in_words(nbytes)}" for name, nbytes in changes]
    hint = "" if source == "tuned" else ": --tune measures"
    return f"{', '.join(parts)} ({source}{hint})"


def sums_are_right(comm: Communicator, algorithm: str) -> bool:
    """Whether an algorithm gives the exact sums, on all ranks, of arrays in which elements and ranks differ. Collective."""
    right = True
    for n in (1, 1000, 1 << 20):
        index = np.arange(n) % 1021
        x = (index * (comm.rank + 1)).astype(np.float32)
        comm.allreduce(x, algorithm=algorithm)
        right &= bool((x == index * (comm.size * (comm.size + 1) // 2)).all())
    return all(comm.allgather_object(right))


def compress(comm: Communicator, training: Sequence[str]) -> int:
    """Print the predicted step time of each --compress in the training run of these options; returns the number of failures."""
    from hpcai.train import advice, inputs
    from hpcai.train.options.parser import parse

    try:
        options = comm.on_root(lambda: parse(training))
        text = advice.table(options, inputs.load(options, comm), comm)
    except (HpcaiError, OSError) as error:
        if comm.rank == 0:
            print(f"hpcai.doctor: error: {one_line(error)}", file=sys.stderr)
        return 1
    if comm.rank == 0:
        print(f"\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
