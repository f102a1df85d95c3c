"""All-reduce against the launching MPI's own and Gloo's, interleaved in the same run, in the shape of nccl-tests.

    mpirun -n 2 python -m bench.allreduce -b 4 -e 256M --against mpi,gloo --plot allreduce.png
    python -m bench.allreduce --against best --ranks 2    # all MPIs that are installed, see bench/rivals.py

Neighbouring elements and all ranks differ, and results are checked against an exact sum before anything is timed. Candidates take
turns, A B A B; a time is the slowest rank's; medians are reported. algbw = bytes / time, busbw = algbw * 2(P-1)/P. The
roofline is the same work without any synchronisation: every element read from and written to all P arrays.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
from collections.abc import Callable
from functools import partial
from math import exp, log
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import hpcai
from bench import rivals
from bench.harness import interleaved, machine, size_of, some_of, start_gloo
from hpcai.comm.communicator import Communicator
from hpcai.comm.launch.launcher import launch
from hpcai.ops import native
from hpcai.train import strict
from hpcai.xp import DTYPES, Array, accumulation_dtype

LABELS = {
    "symmetric": "hpcai, symmetric arrays",
    "ordinary": "hpcai, numpy arrays",
    "auto": "hpcai, numpy arrays",
    "segments": "hpcai, numpy arrays through shared segments",
    "attach": "hpcai, numpy arrays by cross-memory attach",
    "copies": "hpcai, copies to and from a symmetric array",
    "ring": "hpcai, ring over messages",
    "mpi": "MPI_Allreduce",
    "gloo": "Gloo",
    "roofline": "memory roofline",
}

OURS = ("symmetric", "ordinary", "auto", "ring", "segments", "attach", "copies")

COLUMNS = {
    "size": ("size", "11"),
    "count": ("count", "11"),
    "candidate": ("candidate", "14"),
    "time_us": ("time us", "11.2f"),
    "min_us": ("min us", "11.2f"),
    "p99_us": ("p99 us", "11.2f"),
    "algbw_GBs": ("algbw", "8.2f"),
    "busbw_GBs": ("busbw", "8.2f"),
    "wrong": ("#wrong", "6"),
}
"""Keys of a record, with title and format."""

BLOCK = 1 << 18
"""Elements that are checked at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.allreduce", description=__doc__.splitlines()[0])
    parser.add_argument("-b", "--begin", type=size_of, default=4, help="smallest size in bytes (K, M, G)")
    parser.add_argument("-e", "--end", type=size_of, default=size_of("256M"), help="largest size")
    parser.add_argument("-f", "--factor", type=int, default=2, help="factor between sizes")
    parser.add_argument("-n", "--rounds", type=int, default=20, help="turns of each candidate")
    parser.add_argument("-w", "--warmup", type=int, default=2, help="turns before timing")
    parser.add_argument("-c", "--check", type=int, default=1, help="compare with the exact sum first")
    parser.add_argument("-d", "--dtype", default="f32", choices=list(DTYPES))
    parser.add_argument(
        "--beside", default="", type=some_of(*DTYPES), help="dtypes of which as many elements are reduced in turn"
    )
    parser.add_argument("-o", "--op", default="sum", choices=["sum", "mean", "max", "min"])
    parser.add_argument("--of", default="symmetric,ordinary", type=some_of(*OURS), help=f"what of hpcai: {', '.join(OURS)}")
    parser.add_argument("--rewrite", action="store_true", help="write the array anew before each call, as a training step does")
    parser.add_argument(
        "--against", default="mpi", type=some_of("mpi", "gloo", "best"), help="mpi, gloo; or best, without a launcher"
    )
    parser.add_argument("--ranks", type=int, default=2, help="with --against best")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--plot", type=Path, help="file for a plot of bandwidth over size")
    arguments = parser.parse_args()
    if "best" in arguments.against:
        against_best(parser, arguments)
    else:
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Measure all candidates at all sizes on the ranks of this job."""
    comm = hpcai.init()
    beside = [f"{name}:{dtype}" for dtype in arguments.beside.split(",") if dtype for name in arguments.of.split(",")]
    names = [name for name in [*arguments.of.split(","), *beside, *arguments.against.split(",")] if name]
    torch = start_gloo(comm) if "gloo" in names else None
    if "gloo" in names and torch is None:
        raise SystemExit("--against gloo needs torch: pip install torch")
    if comm.rank == 0:
        print(f"# {arguments.dtype} {arguments.op}, {comm.size} ranks, in place. {machine(comm)}")
        print("# " + " ".join(f"{title:>{form.split('.')[0]}}" for title, form in COLUMNS.values()))
    results = []
    size = arguments.begin
    while size <= arguments.end:
        results += measure(comm, arguments, names, size, torch)
        size *= arguments.factor
    if comm.rank == 0:
        summary(results)
        if arguments.json:
            arguments.json.write_text(strict.dumps({"machine": machine(comm), "ranks": comm.size, "results": results}, indent=1))
        if arguments.plot:
            plot(results, arguments, comm)


def against_best(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """bench.rivals with the options that it has too."""
    if launch().name or arguments.against != "best" or (arguments.dtype, arguments.op) != ("f32", "sum"):
        parser.error("--against best starts its own jobs, of f32 sums: leave out mpirun, other rivals, --dtype and --op")
    sizes = [f"-b={arguments.begin}", f"-e={arguments.end}", f"-f={arguments.factor}", f"-n={arguments.rounds}"]
    rivals.main(["allreduce", f"--ranks={arguments.ranks}", *sizes, *([f"--json={arguments.json}"] if arguments.json else [])])


def measure(comm: Communicator, arguments: Any, names: list[str], size: int, torch: Any) -> list[dict[str, Any]]:
    """All candidates at one size: a record of each."""
    n = max(1, size // DTYPES[arguments.dtype].itemsize)
    sides: dict[str, Callable[[], Any]] = {}
    wrong, reduced = {}, dict[str, Array]()
    for name in names:
        what, _, other = name.partition(":")
        dtype = DTYPES[other or arguments.dtype]
        x = comm.symmetric_empty(n, dtype) if what == "symmetric" else np.empty(n, dtype)
        call = candidate(comm, what, x, arguments.op, torch)
        wrong[name] = check(comm, x, call, arguments.op) if arguments.check else 0
        x[:] = 0  # sums of zeros stay zeros, however often they are repeated
        sides[name], reduced[name] = call, x
        if name == "symmetric" and (floor := roofline(comm, x, arguments.op)) is not None:
            sides["roofline"], wrong["roofline"] = floor, 0
    arrays = {name: np.zeros(n, x.dtype) for name, x in reduced.items()} if arguments.rewrite else {}
    prepare: dict[str, Callable[[], Any]] | None = {
        name: partial(np.copyto, reduced[name], arrays[name]) for name in arrays
    } or None
    inner = max(1, min(300, int(3e5 / (size * comm.size / 1e3 + 300))))
    interleaved(comm, sides, arguments.warmup, inner, prepare=prepare)
    rounds = arguments.rounds if size < 32 << 20 else max(5, arguments.rounds // 3)
    times = interleaved(comm, sides, rounds, inner, prepare=prepare)
    records = []
    for name, values in times.items():
        median = statistics.median(values)
        size = n * DTYPES[name.partition(":")[2] or arguments.dtype].itemsize
        record: dict[str, Any] = {
            "size": size,
            "count": n,
            "candidate": name,
            "time_us": 1e6 * median,
            "min_us": 1e6 * min(values),
            "p99_us": 1e6 * float(np.percentile(values, 99)),
            "algbw_GBs": size / median / 1e9,
            "busbw_GBs": size / median / 1e9 * 2 * (comm.size - 1) / comm.size,
            "wrong": wrong[name],
        }
        records.append(record)
        if comm.rank == 0:
            print("  " + " ".join(f"{record[key]:>{form}}" for key, (_, form) in COLUMNS.items()), flush=True)
    return records


def candidate(comm: Communicator, name: str, x: Array, op: str, torch: Any) -> Callable[[], Any]:
    """A call that reduces `x` in place."""
    if name in ("symmetric", "ordinary", "auto"):
        return lambda: comm.allreduce(x, op)
    if name in ("segments", "attach"):
        return partial(way(comm, name).allreduce, x, op)
    if name == "copies":
        beside = comm.symmetric_empty(x.size, x.dtype)

        def copies() -> None:
            np.copyto(beside, x)
            np.copyto(x, comm.allreduce(beside, op))

        return copies
    if name == "ring":
        return lambda: comm.allreduce(x, op, algorithm="ring")
    if name == "mpi":
        MPI, world = comm.wire.MPI, comm.wire.comm  # type: ignore[attr-defined]
        if accumulation_dtype(x.dtype) != x.dtype or op == "mean":
            return lambda: comm.allreduce(x, op, algorithm="mpi")
        verb = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}[op]
        return lambda: world.Allreduce(MPI.IN_PLACE, x, verb)
    tensor = torch.from_numpy(x)
    verb = getattr(torch.distributed.ReduceOp, {"mean": "AVG"}.get(op, op.upper()))
    return lambda: torch.distributed.all_reduce(tensor, verb)


@functools.cache
def way(comm: Communicator, name: str) -> Communicator:
    """A communicator of the same ranks that has one way for ordinary arrays of every size."""
    group = comm.split(0)
    assert group is not None
    group.staged_up_to(1 << 40 if name == "segments" else 0).__enter__()
    return group


def check(comm: Communicator, x: Array, call: Callable[[], Any], op: str) -> int:
    """How many elements of a reduction of all different values differ from the exact one by more than rounding."""

    def part(rank: int, start: int, stop: int) -> Array:
        index = np.arange(start, stop, dtype=np.int64)
        return ((index * (rank + 3) + 17 * rank) % 1021 - 510).astype(x.dtype)

    blocks = [(start, min(start + BLOCK, x.size)) for start in range(0, x.size, BLOCK)]
    for start, stop in blocks:
        x[start:stop] = part(comm.rank, start, stop)
    call()
    wrong = 0
    for start, stop in blocks:
        wide = np.stack([part(rank, start, stop).astype(np.float64) for rank in range(comm.size)])
        bound = {2: 2**-7, 4: 2**-22, 8: 2**-50}[x.itemsize] * np.abs(wide).sum(0)
        wrong += int((np.abs(x[start:stop].astype(np.float64) - getattr(wide, op)(0)) > bound).sum())
    return int(comm.allreduce(np.array([wrong]))[0])


def roofline(comm: Communicator, x: Array, op: str) -> Callable[[], Any] | None:
    """The node all-reduce's memory accesses with nobody waiting for anybody, or None where `x` is not symmetric."""
    where = comm.addresses(x)
    if where is None:
        return None
    mine = comm.chunk(x.size)
    fold = "sum" if op == "mean" else op
    return lambda: native.fold_ranks_into(where, where, x.dtype, fold, mine.start, mine.stop)


def summary(results: list[dict[str, Any]]) -> None:
    """Ratios of the others' times to hpcai's: the smallest anywhere, and geometric means from 16 KiB up."""
    count_of = {r["size"]: r["count"] for r in results if ":" not in r["candidate"]}
    times = {(r["candidate"], size): r["time_us"] for size, n in count_of.items() for r in results if r["count"] == n}
    sizes = sorted(count_of)
    heads = ("", "against", "smallest ratio (at)", "geometric mean from 16 KiB", "share of the roofline from 64 MiB")
    print(f"\n| {' | '.join(heads)} |\n|---|---|---|---|---|")
    for ours in [name for name in OURS if (name, sizes[0]) in times]:
        large = [times["roofline", s] / times[ours, s] for s in sizes if s >= 64 << 20 and ("roofline", s) in times]
        share = f"{min(large):.2f}" if large and ours == "symmetric" else ""
        others = [name for name, size in times if size == sizes[0] and name.startswith(f"{ours}:")]
        for theirs in [*others, *(name for name in ("mpi", "gloo") if (name, sizes[0]) in times)]:
            ratios = {s: times[theirs, s] / times[ours, s] for s in sizes}
            at = min(ratios, key=lambda s: ratios[s])
            upper = [log(ratios[s]) for s in sizes if s >= 16 << 10]
            mean = f"{exp(statistics.mean(upper)):.2f}" if upper else ""
            label = LABELS.get(theirs) or f"as many {theirs.partition(':')[2]}"
            print(f"| {LABELS[ours]} | {label} | {ratios[at]:.2f} ({at} B) | {mean} | {share} |")


def plot(results: list[dict[str, Any]], arguments: Any, comm: Communicator) -> None:
    """Bandwidth over size, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    styles = {"symmetric": "o-", "ordinary": "s-", "auto": "s-", "ring": "v-", "segments": "<-", "attach": ">-", "copies": "+-"}
    styles |= {"mpi": "^--", "gloo": "x--", "roofline": ":"}
    for name in dict.fromkeys(r["candidate"] for r in results):
        own = [r for r in results if r["candidate"] == name]
        label = comm.wire.describe() if name == "mpi" else LABELS[name]
        color = "0.4" if name == "roofline" else None
        axes.loglog([r["size"] for r in own], [r["algbw_GBs"] for r in own], styles[name], markersize=3, label=label, color=color)
    axes.set(xlabel="bytes", ylabel="algorithm bandwidth, GB/s", title=f"all-reduce, {comm.size} ranks, {arguments.dtype}")
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(arguments.plot, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
