"""ULFM, MPI's way to outlive failed ranks: whether it is there, and what Open MPI wants to be told for it.

Everything is said through the environment, before MPI starts, so that users need no options but `mpirun --with-ft ulfm`.
"""

from __future__ import annotations

import os

ENABLED, COLLECTIVES = "OMPI_MCA_mpi_ft_enable", "OMPI_MCA_coll"
"""What mpirun --with-ft ulfm sets, and which of Open MPI's implementations of collectives are used."""


def prepare() -> None:
    """Leave coll/han out, which after a failure gives wrong sums without an error (open-mpi/ompi#11794). Before MPI starts."""
    chosen = os.environ.get(COLLECTIVES, "")
    if os.environ.get(ENABLED) == "1" and not _without_han(chosen) and (not chosen or chosen.startswith("^")):
        os.environ[COLLECTIVES] = f"{chosen},han" if chosen else "^han"


def why_not(library: str) -> str:
    """What keeps ranks from outliving others under this MPI library and launcher; empty if nothing does."""
    if "Open MPI" not in library:
        return f"{library} cannot go on without a failed rank; use Open MPI 5, or go on from checkpoints with --resume auto"
    if os.environ.get(ENABLED) != "1":
        return "the launcher would end all ranks when one fails; start with mpirun --with-ft ulfm"
    if not _without_han(os.environ.get(COLLECTIVES, "")):
        return "Open MPI's coll/han gives wrong sums after a failure; leave it out of --mca coll"
    return ""


def _without_han(chosen: str) -> bool:
    names = chosen.lstrip("^").split(",")
    return "han" in names if chosen.startswith("^") else bool(chosen) and "han" not in names
