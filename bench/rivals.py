"""A collective of hpcai against the best MPI that is installed, each MPI with its best setting at each size, interleaved.

    make bench-mpis
    python -m bench.rivals allreduce --ranks 2
    python -m bench.rivals alltoall -b 4K -e 64M --ranks 4 --json alltoall.json

`make bench-mpis` makes an environment for each MPI in build/mpis. First every setting of every MPI is tried at each size, one
after the other. Then the best setting of each MPI and hpcai's sides take turns in changing order, each in a job of its own, while
the others sleep. A time is the slowest rank's; ratios are medians over rounds of the rival's time by hpcai's.

All sides call in place on f32, but MPI's alltoall, which is faster from one array to another. From 4 KiB up arrays are written
anew before each call, which is not timed; below, calls follow each other. All results are checked before they are timed.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from math import exp, log
from pathlib import Path
from typing import Any, NamedTuple

from bench.harness import processor, size_of
from bench.jobs import Job
from hpcai.train import strict

ROOT = Path(__file__).resolve().parents[1]
COLLECTIVES = ("allreduce", "reduce_scatter", "allgather", "broadcast", "alltoall")
KINDS = ("ordinary", "symmetric")
BLOCK_S = 0.02
"""Seconds of calls in a block, about."""

FROM_UPPER = 16 << 10
"""Bytes from which the geometric mean counts."""

TUNED = {
    "allreduce": range(1, 7),
    "reduce_scatter_block": range(1, 5),
    "allgather": range(1, 8),
    "bcast": range(1, 10),
    "alltoall": range(1, 6),
}
"""The numbers of Open MPI's algorithms in its component `tuned`."""

INTEL = {
    "allreduce": (1, 2, 7, 8, 10, 11),
    "reduce_scatter_block": (1, 2, 3),
    "allgather": (1, 2, 3, 4),
    "bcast": (1, 2, 3, 8),
    "alltoall": (1, 2, 3, 4),
}
"""The numbers of Intel MPI's algorithms that suit one node."""

THEIRS = {"reduce_scatter": "reduce_scatter_block", "broadcast": "bcast"}
"""MPI's names of collectives, where they are other ones."""


class WrongResultError(Exception):
    """A collective came to something else than it must."""


class Side(NamedTuple):
    """An MPI with its settings, as variables of the environment."""

    mpi: str
    setting: str
    variables: dict[str, str]


def settings(mpi: str, collective: str) -> Iterator[Side]:
    """The settings of an MPI that are tried; the first is its default."""
    theirs = THEIRS.get(collective, collective)
    if mpi == "openmpi":
        yield Side(mpi, "default", {})
        yield Side(mpi, "no han", {"OMPI_MCA_coll_han_priority": "0"})
        yield Side(mpi, "sm", {"OMPI_MCA_coll_han_priority": "0", "OMPI_MCA_coll_sm_priority": "90"})
        forced = {"OMPI_MCA_coll_han_priority": "0", "OMPI_MCA_coll_tuned_use_dynamic_rules": "1"}
        for number in TUNED[theirs]:
            yield Side(mpi, f"tuned {number}", forced | {f"OMPI_MCA_coll_tuned_{theirs}_algorithm": str(number)})
    elif mpi == "mpich":
        yield Side(mpi, "default", {})
        yield Side(mpi, "cma", {"MPIR_CVAR_CH4_CMA_ENABLE": "1"})
        if theirs in ("allreduce", "bcast"):
            shared = {f"MPIR_CVAR_{theirs.upper()}_POSIX_INTRA_ALGORITHM": "release_gather"}
            more = {"MPIR_CVAR_COLL_SHM_LIMIT_PER_NODE": "1048576"}
            yield Side(mpi, "release_gather", shared | more)
            cells = {f"MPIR_CVAR_{name}_INTRANODE_BUFFER_TOTAL_SIZE": "1048576" for name in ("BCAST", "REDUCE")}
            yield Side(mpi, "release_gather, 1 MiB", shared | more | cells)
    else:
        yield Side(mpi, "shm", {"I_MPI_FABRICS": "shm"})
        yield Side(mpi, "shm, pt2pt", {"I_MPI_FABRICS": "shm", "I_MPI_COLL_INTRANODE": "pt2pt"})
        for number in INTEL[theirs]:
            yield Side(mpi, f"shm, {number}", {"I_MPI_FABRICS": "shm", f"I_MPI_ADJUST_{theirs.upper()}": str(number)})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.rivals", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("collective", choices=COLLECTIVES)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("-b", "--begin", type=size_of, default=4, help="smallest size of the array in bytes (K, M, G)")
    parser.add_argument("-e", "--end", type=size_of, default=size_of("256M"), help="largest size")
    parser.add_argument("-f", "--factor", type=int, default=2, help="factor between sizes")
    parser.add_argument("-n", "--rounds", type=int, default=25, help="turns of each side")
    parser.add_argument("--mpis", type=Path, default=ROOT / "build/mpis", help="the folder of the MPIs' environments")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args(arguments)
    if absent := [mpi for mpi in ("openmpi", "mpich", "intel") if not (options.mpis / mpi / "bin/python").exists()]:
        parser.error(f"{options.mpis} lacks {', '.join(absent)}; make them by: make bench-mpis")
    sizes = [options.begin * options.factor**i for i in range(64) if options.begin * options.factor**i <= options.end]
    print(f"# {options.collective}, f32, {options.ranks} ranks. {processor()}")
    best = {mpi: screened(options, mpi, sizes) for mpi in ("openmpi", "mpich", "intel")}
    records = interleaved(options, best, sizes)
    summary(records)
    if options.json:
        about = {"machine": processor(), "collective": options.collective, "ranks": options.ranks}
        options.json.write_text(strict.dumps(about | {"records": records}, indent=1))


def start(options: argparse.Namespace, side: Side) -> Job:
    """A job of an MPI, or of hpcai, which runs under MPICH."""
    place = options.mpis / ("mpich" if side.mpi == "hpcai" else side.mpi)
    dropped = ("OPENBLAS_CORETYPE", "PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in dropped and not name.startswith("HPCAI_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{place}/bin:/usr/bin:/bin",
        "I_MPI_ROOT": str(place),
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"HPCAI_KERNELS": "required"} | side.variables
    crowded = options.ranks > (os.cpu_count() or 1)
    if side.mpi == "openmpi":
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        binding = ["--map-by", ":oversubscribe", "--bind-to", "none" if crowded else "core"]
    elif side.mpi == "intel":
        environment |= {"I_MPI_PIN": "0", "I_MPI_THREAD_YIELD": "3"} if crowded else {}
        binding = []
    else:
        environment |= {"MPIR_CVAR_POLLS_BEFORE_YIELD": "0"} if crowded else {}
        binding = [] if crowded else ["-bind-to", "core"]
    serve = [f"{place}/bin/python", "-m", "bench.rival_ranks", side.mpi]
    return Job([f"{place}/bin/mpirun", *binding, "-n", str(options.ranks), *serve], options.ranks, environment, ROOT)


def screened(options: argparse.Namespace, mpi: str, sizes: list[int]) -> dict[int, Side]:
    """The fastest setting of an MPI at each size, by a few blocks of each."""
    found: dict[int, tuple[float, Side]] = {}
    for side in settings(mpi, options.collective):
        try:
            with start(options, side) as job:
                for size in sizes:
                    time = statistics.median(blocks(job, options.collective, size, "ordinary", 3))
                    if size not in found or time < found[size][0]:
                        found[size] = time, side
        except (ConnectionError, TimeoutError, WrongResultError) as error:
            print(f"# {mpi}, {side.setting}: left out, {error}", flush=True)
    if not found:
        raise SystemExit(f"bench.rivals: no setting of {mpi} runs here")
    print(f"# {mpi}: " + "; ".join(f"{size}: {side.setting}" for size, (_, side) in found.items()), flush=True)
    return {size: side for size, (_, side) in found.items()}


def blocks(job: Job, collective: str, size: int, kind: str, count: int) -> Iterator[float]:
    """Seconds a call of the slowest rank, block by block."""
    prepare(job, collective, size, kind)
    inner = calls_of_block(job)
    for _ in range(count):
        yield block(job, inner)
    job.ask("drop")


def prepare(job: Job, collective: str, size: int, kind: str) -> None:
    """Have all ranks use such an array. Raises: WrongResultError, if the collective's result on it is wrong."""
    if wrong := [said for said in job.ask(f"use {collective} {size} {kind}") if said != "ok"]:
        raise WrongResultError(wrong[0])


def calls_of_block(job: Job) -> int:
    once = min(block(job, 1) for _ in range(2))
    return max(1, min(2000, round(BLOCK_S / once)))


def block(job: Job, inner: int) -> float:
    return max(map(float, job.ask(f"time {inner}"))) / inner


def interleaved(options: argparse.Namespace, best: dict[str, dict[int, Side]], sizes: list[int]) -> list[dict[str, Any]]:
    """A record of each size: all sides' median times, and the ratios of the best rival's to hpcai's."""
    records, rng = [], random.Random(0)
    with ExitStack() as stack:
        ours = stack.enter_context(start(options, Side("hpcai", "", {})))
        names = {(side.mpi, side.setting): side for chosen in best.values() for side in chosen.values()}
        theirs = {name: stack.enter_context(start(options, side)) for name, side in names.items()}
        head = f"# {'bytes':>11} {'ordinary us':>12} {'symmetric us':>13} {'best MPI us':>12} {'ratio':>7} {'ratio':>7}  best MPI"
        print(head, flush=True)
        for size in sizes:
            rivals = {mpi: theirs[mpi, chosen[size].setting] for mpi, chosen in best.items()}
            times = turns(options, ours, rivals, size, rng)
            record = record_of(size, times, {mpi: chosen[size].setting for mpi, chosen in best.items()})
            records.append(record)
            print(line(record), flush=True)
    return records


def turns(
    options: argparse.Namespace, ours: Job, rivals: dict[str, Job], size: int, rng: random.Random
) -> dict[str, list[float]]:
    """Seconds a call of each side, round by round."""
    inner: dict[str, int] = {}
    times: dict[str, list[float]] = {}
    sides = [(kind, ours, kind) for kind in KINDS] + [(mpi, job, "ordinary") for mpi, job in rivals.items()]
    rounds = options.rounds if size < 32 << 20 else max(5, options.rounds // 3)
    for _ in range(rounds):
        rng.shuffle(sides)
        for name, job, kind in sides:
            prepare(job, options.collective, size, kind)
            if name not in inner:
                inner[name] = calls_of_block(job)
            block(job, max(1, inner[name] // 10))
            times.setdefault(name, []).append(block(job, inner[name]))
    for _, job, _ in sides:
        job.ask("drop")
    return times


def record_of(size: int, times: dict[str, list[float]], chosen: dict[str, str]) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    rival = min(chosen, key=lambda mpi: medians[mpi])
    ratios = {kind: statistics.median(b / a for a, b in zip(times[kind], times[rival], strict=True)) for kind in KINDS}
    return {
        "size": size,
        "us": {name: 1e6 * value for name, value in medians.items()},
        "settings": chosen,
        "rival": rival,
        "ratio": ratios,
    }


def line(record: dict[str, Any]) -> str:
    us, rival, ratio = record["us"], record["rival"], record["ratio"]
    setting = record["settings"][rival]
    times = f"{us['ordinary']:>12.2f} {us['symmetric']:>13.2f} {us[rival]:>12.2f}"
    return f"  {record['size']:>11} {times} {ratio['ordinary']:>7.2f} {ratio['symmetric']:>7.2f}  {rival}, {setting}"


def summary(records: list[dict[str, Any]]) -> None:
    """The smallest ratio anywhere and the geometric mean of large sizes."""
    print(f"\n| | smallest ratio (at) | geometric mean from {FROM_UPPER >> 10} KiB |\n|---|---|---|")
    for kind in KINDS:
        worst = min(records, key=lambda record: record["ratio"][kind])
        upper = [log(record["ratio"][kind]) for record in records if record["size"] >= FROM_UPPER]
        mean = f"{exp(statistics.mean(upper)):.2f}" if upper else ""
        print(f"| {kind} | {worst['ratio'][kind]:.2f} ({worst['size']} B) | {mean} |")


if __name__ == "__main__":
    main()
