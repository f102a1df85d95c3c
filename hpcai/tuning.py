"""`python -m hpcai.doctor --tune`: measure the ways of an all-reduce on this machine, and keep what was found."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from time import perf_counter

import numpy as np

from hpcai.comm import select
from hpcai.comm.communicator import Communicator
from hpcai.comm.wires import staging

SIZES = tuple(8**k for k in range(1, 10))
"""Bytes of the arrays that --tune reduces: 8 B to 128 MiB."""

TURN_S, LONGEST_S = 0.4, 1.0
"""Time for one algorithm at one size, and the time of a call after which no larger sizes are tried."""

STAGED_SIZES, STAGED_TURNS = tuple(1 << k for k in range(14, 26)), 15
"""Bytes of ordinary arrays that are reduced in both ways on a node: 16 KiB to 32 MiB; and turns of each way."""


def tune(comm: Communicator, largest: int) -> int:
    """Measure the algorithms, fit the constants of the cost model, print them and write them to the cache. Collective.

    Returns the number of failures: 1 if the cache cannot be written, else 0, also where there is nothing to tune.
    """
    if comm.size > 1 and comm.reaches:
        return tune_node(comm, largest)
    if comm.size == 1 or comm.shares_memory:
        if comm.rank == 0:
            print("\nnothing to tune: these ranks reduce through shared memory in one way. Start it across nodes.")
        return 0
    shape, names = comm.selection().shape, runnable(comm)
    measured = [(name, nbytes, seconds) for nbytes, name, seconds in measure(comm, names, largest)]
    constants = select.fit(measured, shape)
    if comm.rank == 0:
        show(measured, names, shape, constants)
    library = comm.wire.describe()
    return keep(comm, lambda: str(select.save(constants, library, shape)), select.key(library, shape))


def tune_node(comm: Communicator, largest: int) -> int:
    """Measure both ways of ordinary arrays on a node, show them, and keep the limit between them. Returns the failures."""
    sizes = [size for size in STAGED_SIZES if size <= max(largest, STAGED_SIZES[0])]
    times = [staging_times(comm, nbytes) for nbytes in sizes]
    chosen = comm.on_root(lambda: staging.best(sizes, *zip(*times, strict=True)))
    if comm.rank == 0:
        print("\n| bytes | through segments, us | cross-memory attach, us | choice |\n|---|---|---|---|")
        for nbytes, (staged, reached) in zip(sizes, times, strict=True):
            choice = "segments" if nbytes <= chosen else "cross-memory attach"
            print(f"| {size_in_words(nbytes)} | {1e6 * staged:,.1f} | {1e6 * reached:,.1f} | {choice} |")
    return keep(comm, lambda: staging.save(chosen, comm.size), staging.key(comm.size))


def staging_times(comm: Communicator, nbytes: int) -> tuple[float, float]:
    """Seconds of an all-reduce of an ordinary array, written before each call, through segments and by cross-memory attach.

    They take turns; medians of the slower rank's. Collective.
    """
    x, source = np.empty(nbytes // 4, np.float32), np.zeros(nbytes // 4, np.float32)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(STAGED_TURNS):
        for limit, found in zip((nbytes, 0), times, strict=True):
            with comm.staged_up_to(limit):
                for _ in range(max(2, min(20, (1 << 22) // nbytes))):
                    x[:] = source
                    found.append(_seconds(comm, lambda: comm.allreduce(x), 1))
    return statistics.median(times[0]), statistics.median(times[1])


def keep(comm: Communicator, save: Callable[[], str], what: str) -> int:
    """Have rank 0 write what was tuned, and say where. Returns the failures. Collective."""
    try:
        path = comm.on_root(save)
    except OSError as error:
        if comm.rank == 0:
            print(f"hpcai.doctor: error: what was tuned could not be kept: {error}; set HPCAI_CACHE to a folder", file=sys.stderr)
        return 1
    if comm.rank == 0:
        print(f"\nkept in {path} for {what}")
    return 0


def runnable(comm: Communicator) -> list[str]:
    """Names of the algorithms that can run among these ranks; empty for one rank."""
    if comm.size == 1:
        return []
    names = ["node"] if comm.shares_memory else []
    two = comm.selection().shape.nodes > 1 and comm.selection().shape.per_node > 1
    library = hasattr(comm.wire, "library_allreduce")
    return [*names, "ring", "halving_doubling", *(["hierarchical"] if two else []), *(["mpi"] if library else [])]


def measure(comm: Communicator, names: list[str], largest: int) -> Iterator[tuple[int, str, float]]:
    """Yield (bytes, algorithm, seconds a call). Collective.

    The algorithms take turns at each size. The seconds are the median over all rounds of the slowest rank's time.
    """
    for nbytes in [size for size in SIZES if size <= max(largest, SIZES[0])]:
        x = np.zeros(max(1, nbytes // 4), np.float32)
        calls = {name: _reduction(comm, x, name) for name in names}
        first = {name: _seconds(comm, call, 1) for name, call in calls.items()}
        rounds = int(comm.allreduce(np.array([TURN_S / max(first.values())]), "min").clip(3, 30)[0])
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(_seconds(comm, call, max(1, min(20, int(2e-3 / first[name])))))
        for name in names:
            yield nbytes, name, statistics.median(times[name])
        if max(first.values()) > LONGEST_S:
            return


def _reduction(comm: Communicator, x: np.ndarray, name: str) -> Callable[[], object]:
    return lambda: comm.allreduce(x, algorithm=name)


def _seconds(comm: Communicator, call: Callable[[], object], count: int) -> float:
    comm.barrier()
    begin = perf_counter()
    for _ in range(count):
        call()
    return float(comm.allreduce(np.array([(perf_counter() - begin) / count]), "max")[0])


def show(measured: list[tuple[str, int, float]], names: list[str], shape: select.Shape, constants: select.Constants) -> None:
    """Print a table of the measured times, the fitted model's choice, and how much slower it is than the fastest algorithm."""
    times = {(name, nbytes): seconds for name, nbytes, seconds in measured}
    print(f"\n| bytes | {' | '.join(f'{name}, us' for name in names)} | choice | slower than the best by |")
    print("|---" * (len(names) + 3) + "|")
    for nbytes in sorted({nbytes for _, nbytes, _ in measured}):
        row = {name: times[name, nbytes] for name in names}
        choice = select.choose(nbytes, shape, constants)
        cells = " | ".join(f"{1e6 * seconds:,.0f}" for seconds in row.values())
        print(f"| {size_in_words(nbytes)} | {cells} | {choice} | {row[choice] / min(row.values()) - 1:.0%} |")
    print(f"\n{', '.join(f'{name} {value:.3g}' for name, value in constants._asdict().items())}")


def size_in_words(nbytes: int) -> str:
    """Return a size such as 64 KiB."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= factor:
            return f"{nbytes / factor:g} {unit}"
    return f"{nbytes} B"
