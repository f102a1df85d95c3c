"""The mesh: ranks by data (dp), pipeline (pp) and tensor (tp) parallelism.

Tensor-parallel ranks communicate most. They have adjacent numbers, so that a whole group is on one node. Pipeline stages are
farthest apart: rank = (pp_rank * dp + dp_rank) * tp + tp_rank.
"""

from __future__ import annotations

import re
from math import prod
from typing import NamedTuple

from hpcai.comm.communicator import Communicator
from hpcai.errors import UsageError, counted

AXES = ("dp", "tp", "pp")


class Sizes(NamedTuple):
    """The number of ranks on each axis."""

    dp: int = 1
    tp: int = 1
    pp: int = 1


class Mesh(NamedTuple):
    """Communicators of all ranks (world), and for each axis of the ranks that differ from this rank on that axis only."""

    world: Communicator
    dp: Communicator
    tp: Communicator
    pp: Communicator

    @property
    def sizes(self) -> Sizes:
        """The number of ranks on each axis."""
        return Sizes(self.dp.size, self.tp.size, self.pp.size)

    @property
    def only_dp(self) -> bool:
        """True if every rank has the whole model."""
        return self.dp.size == self.world.size


def sizes(text: str, ranks: int) -> Sizes:
    """Read a mesh such as dp=2,tp=2,pp=2. The first missing axis of dp, tp, pp takes the remaining ranks; others are 1.

    Raises: UsageError if axes and ranks do not fit; the message suggests a mesh or a number of ranks that fits.

    >>> sizes("tp=2", 8)
    Sizes(dp=4, tp=2, pp=1)
    """
    given: dict[str, int] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        axis, _, count = part.partition("=")
        if axis not in AXES or not re.fullmatch("[1-9][0-9]{0,8}", count) or axis in given:
            raise UsageError(f"--mesh wants dp=N,tp=N,pp=N with whole numbers from 1 and each axis at most once, got {text!r}")
        given[axis] = int(count)
    known = prod(given.values())
    missing = [axis for axis in AXES if axis not in given]
    if ranks % known or (not missing and known != ranks):
        raise UsageError(
            f"--mesh {text} needs {_multiples(known, bool(missing))}, but there {_are(ranks)}; {_fitting(given, ranks)}"
        )
    if missing:
        given[missing[0]] = ranks // known
    return Sizes(**given)


def _multiples(known: int, inferred: bool) -> str:
    return f"a multiple of {counted(known, 'rank')}" if inferred else counted(known, "rank")


def _are(ranks: int) -> str:
    return f"{'is' if ranks == 1 else 'are'} {ranks}"


def _fitting(given: dict[str, int], ranks: int) -> str:
    """Suggest a mesh near the given one for `ranks` ranks, or the number of ranks that fits the given mesh."""
    for axis in ("dp", "pp", "tp"):
        rest = prod(count for name, count in given.items() if name != axis)
        if axis in given and ranks % rest == 0:
            near = ",".join(f"{name}={ranks // rest if name == axis else count}" for name, count in given.items())
            return f"--mesh {near} would fit, or mpirun -n {prod(given.values())}"
    return f"use mpirun -n {prod(given.values())}"


def mesh(comm: Communicator, axes: Sizes) -> Mesh:
    """Split `comm` into the mesh. Collective. Raises: UsageError if the sizes do not match the ranks."""
    if prod(axes) != comm.size:
        raise UsageError(f"a mesh of {axes} has {counted(prod(axes), 'rank')}, but there {_are(comm.size)}")
    at, tp_rank = divmod(comm.rank, axes.tp)
    pp_rank, dp_rank = divmod(at, axes.dp)
    colors = {"dp": pp_rank * axes.tp + tp_rank, "tp": at, "pp": dp_rank * axes.tp + tp_rank}
    groups = []
    for axis in AXES:
        group = comm if getattr(axes, axis) == comm.size else comm.split(colors[axis])
        assert group is not None
        groups.append(group)
    return Mesh(comm, *groups)
