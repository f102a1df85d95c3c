"""A workaround for starts by `srun --mpi=pmi2`, where MPICH over UCX fails or waits for ever with some layouts of memory.

While MPI starts, every rank tells Slurm its address, in lines of PMI-1. Slurm lets values have 1,024 characters, but reads 1,024
of a line (handle_pmi1_cmd in its pmi1.c) and takes the rest for another request, which it does not answer. MPICH sends the 4 KiB
of memory that begin at the address, without zeros: lines are too long wherever few of these bytes are zero.

So until MPI has started, a process between MPICH and Slurm passes their lines on, and tells MPICH that values are shorter.
It is a process, since no Python thread can run while MPI starts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

from hpcai.comm.launch import relay
from hpcai.comm.launch.launcher import srun_pmi2


@contextlib.contextmanager
def short_lines() -> Iterator[None]:
    """A context in which to start MPI. It does nothing unless under `srun --mpi=pmi2`. Cost: the start of a bare Python."""
    named = os.environ.get("PMI_FD", "")
    if not srun_pmi2(os.environ) or not named.isdigit():
        yield
        return
    fd = int(named)
    slurm = os.dup(fd)
    near, far = socket.socketpair()
    with near, far:
        process = _start_relay(far.fileno(), slurm)
        os.dup2(near.fileno(), fd)
    try:
        yield
    finally:  # every request was answered before the next, so nothing is under way
        os.dup2(slurm, fd)
        os.close(slurm)
        process.wait()


def _start_relay(rank: int, slurm: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-I", "-S", relay.__file__, str(rank), str(slurm)], pass_fds=[rank, slurm])
