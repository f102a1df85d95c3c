"""Numbers in units of their deviation from their mean, for columns of any size and spread that f64 holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hpcai.xp import Array

FAR = 1e15
"""More deviations than this from the mean no model can answer to: the square would not fit f32 either."""

_ORDINARY = 300
"""Columns between 2^-300 and 2^300 need no exponent: neither squares nor differences leave f64."""


class Scale(NamedTuple):
    """z = (x * 2^-exponent - mean) / deviation, column by column; 0 where the deviation is 0: such a column says nothing.

    mean, deviation: (columns,) f64; exponent: (columns,) integers, 0 but for columns of huge or tiny numbers.
    """

    mean: Array
    deviation: Array
    exponent: Array

    def apply(self, x: Array) -> Array:
        """(rows, columns) of numbers to f64 deviations; infinite where not even f64 holds them."""
        with np.errstate(over="ignore", invalid="ignore"):
            z = np.ldexp(x, -self.exponent) if self.exponent.any() else np.array(x, np.float64)
            z -= self.mean
            z /= np.where(self.deviation > 0, self.deviation, np.inf)
        z[:, self.deviation == 0] = 0
        return z

    def described(self, column: int) -> dict[str, Any]:
        """Return one column's scaling, for a file."""
        found = {"mean": float(self.mean[column]), "deviation": float(self.deviation[column])}
        return found | ({"exponent": int(self.exponent[column])} if self.exponent[column] else {})


def measure(x: Array) -> Scale:
    """The scale of (rows, columns) of finite numbers, one row at least.

    A column of one value has the deviation 0, whatever its sum rounds to. Elsewhere the mean is found twice, the second time of
    what the first left, so that columns which hardly vary keep their digits.
    """
    x = np.asarray(x, np.float64)
    exponent = np.frexp(np.abs(x).max(0))[1]
    exponent = np.where(np.abs(exponent) > _ORDINARY, exponent, 0).astype(np.int64)
    scaled = np.ldexp(x, -exponent) if exponent.any() else x
    rough = scaled.mean(0)
    left = scaled - rough
    more = left.mean(0)
    left -= more
    constant = x.min(0) == x.max(0)
    deviation = np.where(constant, 0.0, np.sqrt((left**2).mean(0)))
    return Scale(np.where(constant, scaled[0], rough + more), deviation, exponent)
