"""Gradient clipping by global norm, as a factor that the optimizer's pass applies."""

from __future__ import annotations

from math import sqrt

from hpcai import ops
from hpcai.xp import Array


def norm(grads: Array) -> float:
    """The Euclidean norm of a flat gradient, summed in f64; NaN or infinite if an element is."""
    return sqrt(square) if (square := ops.sum_of_squares(grads)) >= 0 else square


def factor(norm: float, limit: float) -> float:
    """What to multiply a gradient of this norm with so that it does not exceed `limit` (0: no limit).

    Source: Pascanu, Mikolov & Bengio, arXiv:1211.5063.
    """
    if not limit >= 0:
        raise ValueError(f"factor wants limit at least 0, got {limit}")
    return limit / norm if limit and norm > limit else 1.0
