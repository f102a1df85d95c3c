"""The choice of an all-reduce when ranks do not all share memory: a cost model with five constants of the machine.

Each algorithm's time is a sum of messages x latency, bytes over the network x seconds per byte, bytes folded x seconds per byte,
and the node's own collectives, as in Thakur, Rabenseifner & Gropp, IJHPCA 19(1), 2005, doi:10.1177/1094342005051521. The
constants are a cautious guess until `python -m hpcai.doctor --tune` fits them and writes them to a cache. The library's
own MPI_Allreduce is a candidate only where it was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcai.comm import tuned
from hpcai.comm.algorithms.table import ALGORITHMS, Shape
from hpcai.comm.wire import Wire
from hpcai.comm.wires import ulfm
from hpcai.xp import Array

FILE = "allreduce"
"""The file of the cache with the constants."""


class Constants(NamedTuple):
    """Seconds of a message, of a byte over the network and of a byte folded; of a collective on a node and of a byte in it; of
    the library's MPI_Allreduce and of a byte in it (0: not measured)."""

    message_s: float = 30e-6
    network_byte_s: float = 0.5e-9
    fold_byte_s: float = 0.15e-9
    node_call_s: float = 5e-6
    node_byte_s: float = 0.2e-9
    library_call_s: float = 0.0
    library_byte_s: float = 0.0


def terms(algorithm: str, nbytes: int, shape: Shape) -> list[float]:
    """The factors of `Constants`, in their order, in the time of an all-reduce of `nbytes` bytes.

    >>> terms("ring", 1000, Shape(nodes=2, per_node=1, ranks=2))
    [2, 1000.0, 0, 0, 0, 0, 0]
    """
    return ALGORITHMS[algorithm].cost(nbytes, shape)


def predict(algorithm: str, nbytes: int, shape: Shape, constants: Constants) -> float:
    """The predicted seconds of an all-reduce of `nbytes` bytes."""
    return float(np.dot(terms(algorithm, nbytes, shape), constants))


def candidates(shape: Shape, constants: Constants) -> list[str]:
    """Names of the algorithms that can run on this shape; "mpi" only if it was measured."""
    known = [name for name in ALGORITHMS if name != "mpi" or constants.library_byte_s]
    return [name for name in known if ALGORITHMS[name].can(shape)]


def choose(nbytes: int, shape: Shape, constants: Constants) -> str:
    """The name of the algorithm with the shortest predicted time.

    >>> [choose(nbytes, Shape(16, 1, 16), Constants()) for nbytes in (8, 1 << 30)]
    ['halving_doubling', 'ring']
    """
    return min(candidates(shape, constants), key=lambda name: predict(name, nbytes, shape, constants))


def fit(measured: Sequence[tuple[str, int, float]], shape: Shape) -> Constants:
    """The non-negative constants that fit measurements (algorithm, bytes, seconds) best, by least squares of relative errors."""
    seconds = np.array([row[2] for row in measured])
    rows = np.array([terms(name, nbytes, shape) for name, nbytes, _ in measured]) / seconds[:, None]
    known = rows.any(0)
    values = np.where(known, 0.0, Constants())
    values[known] = _nonnegative(rows[:, known])
    return Constants(*values.tolist())


def _nonnegative(rows: Array) -> Array:
    """Least squares of rows @ values = 1 with values >= 0: while values are negative, the most negative one is set to 0."""
    scale = np.abs(rows).max(0)
    active = np.arange(rows.shape[1])
    while len(active):
        solved = np.linalg.lstsq(rows[:, active] / scale[active], np.ones(len(rows)))[0]
        if (solved >= 0).all():
            break
        active = np.delete(active, solved.argmin())
    values = np.zeros(rows.shape[1])
    if len(active):
        values[active] = solved / scale[active]
    return values


class Choice(NamedTuple):
    """The shape of a communicator, the constants for it, and the constants' source (see `load`)."""

    shape: Shape
    constants: Constants
    source: str


def agree(wire: Wire) -> Choice:
    """The choice of all ranks of `wire`: rank 0 reads the cache. Collective."""
    on_node = Counter(wire.exchange(wire.node_color()))
    sizes = set(on_node.values())
    shape = Shape(len(on_node), sizes.pop() if len(sizes) == 1 else 0, wire.size)
    constants, source = wire.exchange(load(wire.describe(), shape) if wire.rank == 0 else None)[0]
    if ulfm.enabled():  # the library's sums are not to be trusted when a rank fails in them
        constants = constants._replace(library_call_s=0.0, library_byte_s=0.0)
    return Choice(shape, constants, source)


def key(library: str, shape: Shape) -> str:
    """The cache's key: machine, MPI library and world shape in words."""
    return f"{shape.ranks} ranks, {shape.nodes} nodes on {tuned.machine()}; {library}"


def load(library: str, shape: Shape) -> tuple[Constants, str]:
    """Constants for this machine, and their source: "tuned" (for this shape), "tuned for another shape", or "untuned".

    A shape that was not tuned takes the constants of one that was, except those of the library, which hold for one shape only.
    """
    wanted = key(library, shape)
    known = _read()
    if wanted in known:
        return known[wanted], "tuned"
    machine = wanted.split(" on ", 1)[1]
    for name in sorted(known):
        if name.split(" on ", 1)[-1] == machine:
            return known[name]._replace(library_call_s=0.0, library_byte_s=0.0), "tuned for another shape"
    return Constants(), "untuned"


def save(constants: Constants, library: str, shape: Shape) -> Path:
    """Add or replace the constants of this machine and shape in the cache; returns its path. Raises: OSError."""
    known = {name: entry._asdict() for name, entry in _read().items()}
    return tuned.write(FILE, known | {key(library, shape): constants._asdict()})


def _read() -> dict[str, Constants]:
    return tuned.read(FILE, lambda entry: Constants(**{name: float(value) for name, value in entry.items()}))
