"""Losses: from predictions and targets to a sum over the batch and the gradient, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hpcai import ops
from hpcai.xp import Array


class Loss(NamedTuple):
    """evaluate(dy, y, target, scale) writes dy = scale * gradient of the sum and returns (sum of losses, correct rows)."""

    name: str
    evaluate: Callable[[Array, Array, Array, float], tuple[float, int]]


def softmax_cross_entropy() -> Loss:
    """-log softmax(y)[target] for each row; y (b, classes), target (b,) i64. A row is correct if its largest y is the target."""
    return Loss("softmax_cross_entropy", ops.softmax_cross_entropy_into)


def mean_squared_error() -> Loss:
    """Mean over columns of (y - target)**2 for each row; y, target (b, k)."""
    return Loss("mean_squared_error", ops.mean_squared_error_into)
