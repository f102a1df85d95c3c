"""What the benches share: interleaved timing over ranks, the machine in words, byte sizes."""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

from bench import PINNED
from hpcai.comm.communicator import Communicator
from hpcai.comm.launch import cores

REST_S = 0.01


def interleaved(
    comm: Communicator,
    sides: dict[str, Callable[[], Any]],
    rounds: int,
    inner: int,
    uncounted: int = 1,
    prepare: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, list[float]]:
    """Seconds a call of each side, `rounds` times in turn, each time in another order: the mean of `inner` calls, of the slowest
    rank.

    Before its turn each side rests, so that the threads of the one before are asleep, and makes calls that do not count.
    prepare: what each side does before each call, which does not count.
    No side always follows the same other one, which may leave the cores warm or its threads awake.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    order, rng = list(sides.items()), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for name, call in order:
            sleep(REST_S)
            comm.barrier()
            for _ in range(uncounted):
                call()
            comm.barrier()
            times[name].append(_seconds(comm, call, inner, prepare.get(name) if prepare else None))
    for values in times.values():
        values[:] = (comm.allreduce(np.array(values), "max") / inner).tolist()
    return times


def _seconds(comm: Communicator, call: Callable[[], Any], inner: int, prepare: Callable[[], Any] | None) -> float:
    """Seconds of `inner` calls on this rank, without those of what comes before each."""
    if prepare is None:
        begin = perf_counter()
        for _ in range(inner):
            call()
        return perf_counter() - begin
    spent = 0.0
    for _ in range(inner):
        prepare()
        comm.barrier()
        begin = perf_counter()
        call()
        spent += perf_counter() - begin
    return spent


def start_gloo(comm: Communicator) -> Any:
    """torch with its Gloo process group among the same ranks, or None where torch is not installed.

    Over loopback, unless $MASTER_ADDR and $GLOO_SOCKET_IFNAME say otherwise (two_hosts.sh sets them).
    """
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)

    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

    def free_port() -> int:
        with socket.socket() as probe:
            probe.bind((os.environ["MASTER_ADDR"], 0))
            return probe.getsockname()[1]

    os.environ["MASTER_PORT"] = str(comm.on_root(free_port))
    torch.distributed.init_process_group("gloo", rank=comm.rank, world_size=comm.size)
    return torch


def processor() -> str:
    """Processor and cores, Python, numpy, and the BLAS kernel that runs."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = f"Python {platform.python_version()}, numpy {np.__version__}"
    kernel = cores.blas() + (f" (OPENBLAS_CORETYPE={PINNED} was set and is not used)" if PINNED else "")
    return f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores; {versions}, {kernel}"


def machine(comm: Communicator) -> str:
    """Processor, cores and versions, in one line."""
    torch = f", torch {sys.modules['torch'].__version__}" if "torch" in sys.modules else ""
    return f"{processor()}, {comm.wire.describe()}{torch}"


def size_of(text: str) -> int:
    """Bytes from 4, 64K, 256M or 1G."""
    units = {"K": 10, "M": 20, "G": 30}
    return int(text[:-1]) << units[text[-1].upper()] if text[-1].upper() in units else int(text)


def some_of(*known: str) -> Callable[[str], str]:
    """A check of an argument: some of these names with commas between them, or none."""

    def checked(text: str) -> str:
        if wrong := [name for name in text.split(",") if name not in ("", *known)]:
            raise argparse.ArgumentTypeError(f"there is no {wrong[0]}, but {', '.join(known)}")
        return text

    return checked
