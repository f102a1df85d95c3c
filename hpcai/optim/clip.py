"""Gradient clipping by global norm, as a factor that the optimizer's pass applies."""

from __future__ import annotations

from math import sqrt

from hpcai import ops
from hpcai.ops.ranges import not_negative, up_to_infinity
from hpcai.xp import Array


def norm(grads: Array) -> float:
    """Return the Euclidean norm of a flat gradient, summed in f64; NaN or infinite if an element is."""
    return sqrt(square) if (square := ops.sum_of_squares(grads)) >= 0 else square


def factor(norm: float, limit: float) -> float:
    """Return the factor that limits a gradient of this norm to `limit` (0: no limit).

    Raises: ValueError for a norm that is not finite, since no factor can limit it.
    Source: Pascanu, Mikolov & Bengio, arXiv:1211.5063.
    """
    not_negative(factor, norm=norm)
    up_to_infinity(factor, limit=limit)
    return limit / norm if limit and norm > limit else 1.0
