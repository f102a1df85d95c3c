"""Sums that have the same bits for any number of ranks, any topology and any way of cutting into pieces: sums of integers.

All contributions are rounded to whole units of one power of two, which follows from the largest magnitude among all of them, and
added as i64: neither the maximum nor the sum depends on order. A contribution is an array that is computed in one piece: one
rank's, or, where the result is to be the same for any number of ranks, a *grain* of a few samples (see train/grains.py).

Source: the idea of Demmel & Nguyen, ARITH 2013, doi:10.1109/ARITH.2013.9, with one bin that the maximum chooses.
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
"""Bits of the largest magnitude; with 2**16 contributions of it a sum stays below 2**62."""

MOST = 1 << 16
"""Contributions to one sum."""


def reproducible() -> Reducer:
    """The mean of one contribution a rank, exact to 2**-46 of the largest magnitude, in i64: 16(P-1)/P bytes an element sent.

    Nothing is lost but that and the last rounding to f32, so there is no residual. NaN and infinity make all of it NaN.
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
    """The largest magnitude on any rank; NaN if there is one."""
    return float(comm.allreduce(np.array([largest_magnitude(x)]), "max")[0])


def largest_magnitude(x: Array) -> float:
    """Return the largest magnitude of f32 values, as f64; NaN if one is NaN, 0 for an empty array.

    >>> largest_magnitude(np.float32([1, -3])), largest_magnitude(np.float32([]))
    (3.0, 0.0)
    """
    return max(abs(float(x.max())), abs(float(x.min()))) if x.size else 0.0


def exponent_of(largest: float) -> int:
    """The least e with largest < 2**e.

    >>> exponent_of(1.0), exponent_of(0.75), exponent_of(0.0)
    (1, 0, -149)
    """
    return frexp(largest)[1] if largest else -149


def unit_for(exponent: int) -> int:
    """The exponent of the unit for contributions below 2**exponent."""
    return exponent - BITS
