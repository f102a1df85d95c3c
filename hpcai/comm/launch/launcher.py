"""Rank and size from the environment that the launcher sets, readable before MPI starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple


class Launch(NamedTuple):
    """This process among those that the launcher started; `name` is empty when there is no launcher."""

    name: str
    rank: int
    size: int
    local_size: int


# mpirun inside an allocation also sees Slurm's variables, so they are read last. SLURM_STEP_NUM_TASKS is set for
# processes that srun started, but not in the batch script itself, where a world of one is right.
_LAUNCHERS = (
    ("Open MPI's mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPICH's or Intel's mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
)


def launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read which launcher started this process, as which rank of how many.

    >>> launch({"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"})
    Launch(name="MPICH's or Intel's mpiexec", rank=1, size=4, local_size=2)
    >>> launch({})
    Launch(name='', rank=0, size=1, local_size=1)
    """
    for name, rank, size, local_size in reversed(_LAUNCHERS) if srun_pmi2(environment) else _LAUNCHERS:
        if environment.get(rank, "").isdigit() and environment.get(size, "").isdigit():
            local = environment.get(local_size, "").split("(")[0]
            count = int(environment[size])
            return Launch(name, int(environment[rank]), count, int(local) if local.isdigit() else count)
    return Launch("", 0, 1, 1)


def srun_pmi2(environment: Mapping[str, str]) -> bool:
    """True under srun --mpi=pmi2, which sets mpiexec's variables as well, but not how many ranks are on the node."""
    both = (("PMI_RANK", "SLURM_PROCID"), ("PMI_SIZE", "SLURM_STEP_NUM_TASKS"))
    same = all(pmi in environment and environment[pmi] == environment.get(slurm) for pmi, slurm in both)
    return same and "MPI_LOCALNRANKS" not in environment


def pretended_node(rank: int) -> int | None:
    """The node of `rank` if $HPCAI_RANKS_PER_NODE pretends, for tests, that a node has so many ranks; None if it is not set."""
    per_node = os.environ.get("HPCAI_RANKS_PER_NODE", "")
    return rank // int(per_node) if per_node.isdigit() and int(per_node) > 0 else None
