"""Standardisation: numbers as deviations from their mean, for columns of any size and spread that f64 holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hpcai.xp import Array

FAR = 1e15
"""The limit for distances from the mean, in deviations. No model can use numbers beyond it, whose squares soon leave f32."""

_ORDINARY = 300
"""A column whose largest magnitude is between 2^-300 and 2^300 needs no exponent: its squares and differences fit f64."""


class Scale(NamedTuple):
    """z = (x * 2^-exponent - mean) / deviation, for each column; 0 if the deviation is 0, since such a column has no information.

    mean, deviation: (columns,) f64; exponent: (columns,) integers, 0 but for columns of huge or tiny numbers.
    """

    mean: Array
    deviation: Array
    exponent: Array

    def apply(self, x: Array) -> Array:
        """Return z for x, both (rows, columns), in f64; infinite where f64 does not hold z."""
        with np.errstate(over="ignore", invalid="ignore"):
            z = np.ldexp(x, -self.exponent) if self.exponent.any() else np.array(x, np.float64)
            z -= self.mean
            z /= np.where(self.deviation > 0, self.deviation, np.inf)
        z[:, self.deviation == 0] = 0
        return z

    def described(self, column: int) -> dict[str, Any]:
        """Return one column's scaling, JSON-able."""
        found = {"mean": float(self.mean[column]), "deviation": float(self.deviation[column])}
        return found | ({"exponent": int(self.exponent[column])} if self.exponent[column] else {})


def measure(x: Array) -> Scale:
    """Return the scale of x, (rows, columns) of finite numbers, with at least one row.

    A column of one value has the deviation 0, however its sum is rounded. For other columns the mean is computed twice, the
    second time after the first mean is subtracted, so that columns with little variation keep their digits.
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
