"""Sums that have the same bits for any number of ranks, any topology and any way of cutting into pieces: sums of integers.

All contributions are rounded to whole units of one power of two and added as i64. The largest magnitude of all contributions
decides the unit, so neither unit nor sum depends on order. A contribution is an array that is computed in one piece: one rank's,
or that of a *grain* of a few samples, if the result must be the same for any number of ranks (see train/grains.py).

Source: the idea of Demmel & Nguyen, ARITH 2013, doi:10.1109/ARITH.2013.9, with one bin, which the maximum chooses.
"""

from __future__ import annotations

from math import frexp

import numpy as np

from hpcai.comm.collectives import Collectives
from hpcai.ops import integers
from hpcai.ops.door import takes
from hpcai.reduce.reducer import Reduced, Reducer, State
from hpcai.xp import Array

BITS = 46
"""Bits of the largest magnitude; the sum of 2**16 contributions of this size stays below 2**62."""

MOST = 1 << 16
"""The most contributions to one sum."""


def reproducible() -> Reducer:
    """Return a reducer for one contribution a rank, in i64, exact to 2**-46 of the largest magnitude.

    Only that rounding and the last rounding to f32 lose anything, so there is no residual. A NaN or infinity makes the whole
    mean NaN. Cost: 16(P-1)/P bytes an element sent per rank.
    """

    @takes(x="f32 n", writes="x")
    def reduce(x: Array, comm: Collectives, state: State) -> Reduced:
        largest = agreed_largest(x, comm)
        if not np.isfinite(largest):
            x[:] = np.nan
            return Reduced(x, None, state)
        unit = unit_for(exponent_of(largest))
        sums = integers.add_fixed_into(np.zeros(x.size, np.int64), x, unit)
        comm.allreduce(sums, "sum")
        integers.from_fixed_into(x, sums, unit)
        x /= np.float32(comm.size)
        return Reduced(x, None, state)

    return Reducer("reproducible", lambda x: None, reduce)


def agreed_largest(x: Array, comm: Collectives) -> float:
    """Return the largest magnitude on any rank; NaN if any rank has a NaN. Collective."""
    return float(comm.allreduce(np.array([largest_magnitude(x)]), "max")[0])


def largest_magnitude(x: Array) -> float:
    """Return the largest magnitude of f32 values, as f64; NaN if one is NaN, 0 for an empty array.

    >>> largest_magnitude(np.float32([1, -3])), largest_magnitude(np.float32([]))
    (3.0, 0.0)
    """
    return max(abs(float(x.max())), abs(float(x.min()))) if x.size else 0.0


def exponent_of(largest: float) -> int:
    """Return the least e with largest < 2**e; -149 for 0.

    >>> exponent_of(1.0), exponent_of(0.75), exponent_of(0.0)
    (1, 0, -149)
    """
    return frexp(largest)[1] if largest else -149


def unit_for(exponent: int) -> int:
    """Return the exponent of the unit for contributions below 2**exponent."""
    return exponent - BITS
