"""ULFM, MPI's extension for ranks that outlive failed ranks: whether it is enabled, and the settings that Open MPI needs for it.

All settings are made in the environment before MPI starts, so that users need no option but `mpirun --with-ft ulfm`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

from hpcai.comm.launch import host
from hpcai.errors import RanksLost

ENABLED, COLLECTIVES, TRANSPORTS = "OMPI_MCA_mpi_ft_enable", "OMPI_MCA_coll", "OMPI_MCA_btl"
"""Variables: set by mpirun --with-ft ulfm; the choice of Open MPI's implementations of collectives, and of transports."""

PR_SET_PDEATHSIG = 1
"""The operation of the system call prctl that sets the signal for the parent's end (Linux)."""

LAST_LOOKS = 30
"""How often, every 0.01 s, a rank that ends the job looks whether it is the last that lives."""

RECOVERABLE = "state_base_recoverable"
"""The launcher's parameter without which the end of a rank that was started later counts as a failure of the job."""

GIVEN_UP = "; the ranks that are left went on without this communicator: take Trained.comm, or hpcai.init()"
"""The end of the error of a call on a communicator that has lost ranks."""


def enabled() -> bool:
    """True if the launcher lets ranks outlive others."""
    return os.environ.get(ENABLED) == "1"


def prepare() -> None:
    """Call before MPI starts. Where ULFM is enabled: exclude coll/han, which gives wrong sums without an error after a failure
    (open-mpi/ompi#11794), and btl/sm, which, unlike a TCP connection, does not break when a rank ends; and have this rank end
    with its launcher. Ranks of a node that share memory reduce arrays without either component.
    """
    chosen = os.environ.get(COLLECTIVES, "")
    if enabled() and not _without_han(chosen) and (not chosen or chosen.startswith("^")):
        os.environ[COLLECTIVES] = f"{chosen},han" if chosen else "^han"
    if enabled():
        os.environ.setdefault(TRANSPORTS, "^sm")
        _end_with_launcher()


def _end_with_launcher() -> None:
    """Have the kernel kill this process when its parent, the launcher, ends. Otherwise the kernel would thaw a frozen rank then,
    which would take the others' end for a failure, and go on alone in the files of the run that was started again.
    """
    parent, libc = os.getppid(), ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(RanksLost.exit_code)


def why_not(library: str, growing: bool = False) -> str:
    """Why ranks cannot outlive others with this library and launcher, or (`growing`) new ranks cannot be started; else empty."""
    if "Open MPI" not in library:
        return f"{library} cannot go on without a failed rank; use Open MPI 5, or go on from checkpoints with --resume auto"
    if not enabled() or (growing and not _launcher_says(RECOVERABLE)):
        option = f" --prtemca {RECOVERABLE} 1" * growing
        return f"the launcher would end all ranks when one fails; start with mpirun --with-ft ulfm{option}"
    if not _without_han(os.environ.get(COLLECTIVES, "")):
        return "Open MPI's coll/han gives wrong sums after a failure; leave it out of --mca coll"
    return ""


def is_failure(MPI: Any, error: Any) -> bool:
    """Whether an MPI error says that a rank failed. Where ranks may fail, errors of no particular class count too: Open MPI's
    collectives sometimes end with one.
    """
    unclassed = (MPI.ERR_OTHER, MPI.ERR_INTERN, MPI.ERR_UNKNOWN) if enabled() else ()
    return error.Get_error_class() in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED, *unclassed)


def _launcher_says(name: str) -> bool:
    """False if this rank's launcher runs here and was not given the parameter `name`, which it does not pass on to ranks."""
    folder = Path(f"/proc/{os.getppid()}")
    if not host.name(os.getppid()).startswith(("prterun", "mpirun", "mpiexec")):
        return True
    try:
        given = (folder / "cmdline").read_text().split("\0")
        return name in given or f"PRTE_MCA_{name}=1" in (folder / "environ").read_text().split("\0")
    except OSError:
        return True


def _without_han(chosen: str) -> bool:
    names = chosen.lstrip("^").split(",")
    return "han" in names if chosen.startswith("^") else bool(chosen) and "han" not in names


def is_last(wire: Any) -> bool:
    """Whether all other ranks of the wire have failed. MPI notices that only when it makes progress, which takes a moment."""
    for _ in range(LAST_LOOKS):
        with contextlib.suppress(wire.MPI.Exception):
            wire.comm.Iprobe()
        with contextlib.suppress(wire.MPI.Exception, NotImplementedError):
            if wire.comm.Get_failed().Get_size() >= wire.size - 1:
                return True
        time.sleep(0.01)
    return False
