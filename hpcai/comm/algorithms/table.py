"""The all-reduce algorithms for ranks that do not all share memory: how each runs, what it costs, and where it can run."""

from __future__ import annotations

from collections.abc import Callable
from math import log2
from typing import NamedTuple

from hpcai.comm.algorithms import halving, hierarchical, ring
from hpcai.comm.algorithms.hierarchical import Levels
from hpcai.comm.wire import Wire
from hpcai.xp import Array


class Shape(NamedTuple):
    """The number of nodes, of ranks on each node (0: nodes differ), and of ranks in all."""

    nodes: int
    per_node: int
    ranks: int


class Algorithm(NamedTuple):
    """A row of the table.

    run(x, wire, levels, op): reduces the flat array x in place; levels() gives the levels of nodes and rails, or None where there
    are not two. cost(nbytes, shape): the factors of select.Constants in its time. can(shape): whether it can run on this shape.
    """

    about: str
    run: Callable[[Array, Wire, Callable[[], Levels | None], str], object]
    cost: Callable[[int, Shape], list[float]]
    can: Callable[[Shape], bool]
    source: str = ""


def _ring_cost(nbytes: int, shape: Shape) -> list[float]:
    moved = 2 * nbytes * (shape.ranks - 1) / shape.ranks
    return [2 * (shape.ranks - 1), moved, 0, 0, 0, 0, 0]  # folds overlap with transfers


def _halving_cost(nbytes: int, shape: Shape) -> list[float]:
    power = 1 << (shape.ranks.bit_length() - 1)
    beyond = shape.ranks > power
    # Near ranks exchange most; only exchanges with a partner on another node go over the network.
    local = min(power, shape.per_node & -shape.per_node or 1)
    network = 2 * nbytes * (power / local - 1) / (power / local) + 2 * nbytes * beyond
    folded = nbytes * (power - 1) / power + nbytes * beyond
    on_node = 2 * nbytes * (local - 1) / local  # by messages, which copy twice
    return [2 * log2(power) + 2 * beyond, network, folded, 0, on_node, 0, 0]


def _hierarchical_cost(nbytes: int, shape: Shape) -> list[float]:
    rail = 2 * (shape.nodes - 1)
    return [rail, nbytes * rail / shape.nodes, 0, 2, nbytes, 0, 0]


def _run_hierarchical(x: Array, wire: Wire, levels: Callable[[], Levels | None], op: str) -> object:
    two = levels()
    return ring.allreduce(x, wire, op) if two is None else hierarchical.allreduce(x, two, op)


ALGORITHMS = {
    "ring": Algorithm(
        "chunks go round twice",
        lambda x, wire, levels, op: ring.allreduce(x, wire, op),
        _ring_cost,
        lambda shape: True,
        "Patarasuk & Yuan, doi:10.1016/j.jpdc.2008.09.002",
    ),
    "halving_doubling": Algorithm(
        "partners at doubling distances exchange halves",
        lambda x, wire, levels, op: halving.allreduce(x, wire, op),
        _halving_cost,
        lambda shape: True,
        "Thakur et al., doi:10.1177/1094342005051521",
    ),
    "hierarchical": Algorithm(
        "shared memory on each node, a ring along each rail",
        _run_hierarchical,
        _hierarchical_cost,
        lambda shape: shape.nodes > 1 and shape.per_node > 1,
        "Jia et al., arXiv:1807.11205",
    ),
    "mpi": Algorithm(
        "the library's own MPI_Allreduce",
        lambda x, wire, levels, op: wire.library_allreduce(x, op),  # type: ignore[attr-defined]
        lambda nbytes, shape: [0, 0, 0, 0, 0, 1, nbytes],
        lambda shape: True,
    ),
}
"""The algorithms by name."""
