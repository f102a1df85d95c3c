"""A check, before any memory is taken, that a model fits into free memory. Without it the operating system would kill a process
that runs out of memory, without a message.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.comm.launch import host
from hpcai.data import memory
from hpcai.data.dataset import Dataset
from hpcai.errors import UsageError
from hpcai.optim.table import OPTIMIZERS
from hpcai.parallel import mesh as meshes
from hpcai.train import build, rounding
from hpcai.train.options.options import Options
from hpcai.xp import DTYPES


class Pool(NamedTuple):
    """Memory that some ranks share: its name in messages, a key that identifies the pool, and the number of free bytes."""

    what: str
    key: str
    free: int


def require(options: Options, dataset: Dataset, comm: Communicator) -> None:
    """Raise UsageError, on all ranks alike, if the ranks of a node need more memory than is free there. Collective.

    The need is a lower bound: the memory that ranks hold from step to step, or at the start. Activations need more.
    """
    elements, largest, states = comm.on_root(lambda: _parameters(options, dataset))
    axes = meshes.sizes(options.mesh, comm.size)
    wanted = needed(options, elements, largest, axes, states)
    told = comm.allgather_object((pools(), wanted))
    sums: dict[str, int] = {}
    for there, bytes_there in told:
        for pool in there:
            sums[pool.key] = sums.get(pool.key, 0) + bytes_there
    for pool in (pool for there, _ in told for pool in there):
        if sums[pool.key] > pool.free:
            count = sums[pool.key] // max(1, wanted)
            who = f"{count} ranks need" if count > 1 else "1 rank needs"
            raise UsageError(
                f"{elements:,} parameters do not fit into memory: {who} at least "
                f"{_gb(sums[pool.key])} GB, and {_gb(pool.free)} GB are free in {pool.what}. "
                f"{_advice(options, axes, count, states)}"
            )


def needed(options: Options, elements: int, largest: int, axes: meshes.Sizes, states: int) -> int:
    """Return the bytes that a rank needs at least.

    elements, largest: of the whole model and of its largest array. states: arrays of optimizer state.
    """
    here, dp = elements / (axes.tp * axes.pp), axes.dp
    stored = np.dtype(DTYPES[options.dtype]).itemsize
    half = options.dtype in rounding.STORAGE
    whole = 4 if half else stored
    shard = [here / dp if options.zero >= stage else here for stage in (1, 2, 3)]  # of optimizer state, gradients, parameters
    kept = shard[2] * stored + shard[1] * (stored if options.zero < 2 else whole) + shard[0] * states * whole
    kept += (shard[0] + (here if options.zero < 3 else 0) + (here if options.zero < 2 else 0)) * 4 * half
    kept += here / dp * (states + 1) * whole * bool(options.redundancy and options.zero and dp > 1)
    remembers = options.compress not in ("none", "auto", "reproducible") and not options.no_error_feedback
    kept += here * (4 * remembers + 8 * (options.compress == "reproducible"))
    return int(kept + here * whole * (options.zero > 2) + min(largest, here) * 8)  # f64 initial values, an array at a time


def pools() -> list[Pool]:
    """Return the pools of memory that limit this process: its machine, its control groups, and its own limit (ulimit -v)."""
    node, booted, found = os.uname().nodename, host.boot_id(), []
    if (free := memory.machine()) is not None:
        found.append(Pool(f"node {node}", booted, free))
    for group, free in memory.control_groups():
        found.append(Pool(f"the control group {group} on node {node}", f"{booted} {_number(group)}", free))
    if (free := memory.limit()) is not None:
        found.append(Pool(f"the limit of process {os.getpid()} on node {node} (ulimit -v)", f"{booted} {os.getpid()}", free))
    return found


def _number(group: Path) -> str:
    """Return text that identifies a control group on its machine. The path does not: containers may see different groups under
    one path.
    """
    about = group.stat()
    return f"{about.st_dev} {about.st_ino}"


def _parameters(options: Options, dataset: Dataset) -> tuple[int, int, int]:
    """Return three numbers: all parameters, elements of the largest array, and arrays of optimizer state, each as long as the
    parameters.
    """
    model = build.build_model(options, dataset)
    largest = max((slot.stop - slot.start for slot in model.layout.slots), default=0)
    return model.layout.size, largest, len(build.build_optimizer(options, model).init(np.zeros(1, np.float32)))


def _advice(options: Options, axes: meshes.Sizes, count: int, states: int) -> str:
    helps = ["a smaller model"]
    row = OPTIMIZERS.get(options.optimizer)
    refused = row is not None and row.refuses(dataclasses.replace(options, zero=3), axes)
    if axes.dp > 1 and options.zero < 3 and not refused:
        helps.append(f"--zero {options.zero + 1}" if options.zero == 2 else f"--zero {options.zero + 1} to 3")
    if states:
        helps.append("--optimizer sgd")
    if options.model == "gpt":
        helps.append("a --mesh with more tp or pp")
    helps.append("more memory" if count == 1 else "fewer ranks on a node")
    return f"What helps: {', '.join(helps)}"


def _gb(count: float) -> str:
    return f"{count / 1e9:,.1f}"
