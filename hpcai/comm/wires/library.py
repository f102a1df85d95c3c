"""The MPI library, through mpi4py, which no other file imports."""

from __future__ import annotations

import atexit
import functools
import os
import sys
from typing import Any

from hpcai.comm.launch import library_search, pmi
from hpcai.comm.wires import ulfm
from hpcai.errors import LaunchError


def name() -> str:
    """The MPI library's own name and version, such as "Open MPI v5.0.11"."""
    text = load().Get_library_version().strip("\0").replace("Version:", " ")
    return " ".join(text.splitlines()[0].split(",")[0].split())


@functools.cache
def load() -> Any:
    """Import mpi4py.MPI, which starts MPI, at the first call. Returns the module. Raises: LaunchError if MPI cannot be loaded."""
    # Open MPI's one-sided component over UCX prints errors on machines without its devices; hpcai does not use it.
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    ulfm.prepare()
    try:
        with pmi.short_lines():
            import mpi4py

            if "mpi4py.MPI" not in sys.modules and mpi4py.rc.finalize is None:  # else the code that imported it has decided
                mpi4py.rc.finalize = False
                _end_by(os.getpid())
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(library_search.absent(str(error))) from None
    return MPI


def _end_by(pid: int) -> None:
    """Have MPI_Finalize called when the process `pid` ends, unless it might wait there for failed ranks. mpi4py would call it in
    forked children too.
    """

    def finalize() -> None:
        MPI = load()
        if os.getpid() == pid and not ulfm.enabled() and MPI.Is_initialized() and not MPI.Is_finalized():
            MPI.Finalize()

    atexit.register(finalize)
