"""Losses: from predictions and targets to a sum over the batch and the gradient, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hpcai import ops
from hpcai.nn.split import WHOLE, Split
from hpcai.ops.door import refuse_outside, takes
from hpcai.xp import Array


class Loss(NamedTuple):
    """evaluate(dy, y, target, scale) writes dy = scale * gradient of the sum and returns (sum of losses, correct rows).

    counts: whether it tells which rows are correct; without, there is no accuracy.
    """

    name: str
    evaluate: Callable[[Array, Array, Array, float], tuple[float, int]]
    counts: bool = True


def softmax_cross_entropy() -> Loss:
    """-log softmax(y)[target] for each row; y (b, classes), target (b,) i64. A row is correct if its largest y is the target."""
    return Loss("softmax_cross_entropy", ops.softmax_cross_entropy_into)


def mean_squared_error() -> Loss:
    """Mean over columns of (y - target)**2 for each row; y, target (b, k)."""
    return Loss("mean_squared_error", ops.mean_squared_error_into, counts=False)


def token_cross_entropy(split: Split = WHOLE, tokens: int = 256) -> Loss:
    """softmax_cross_entropy where each rank has some classes' columns: y (rows, tokens / split.parts), target (b, context).

    Ranks combine the rows' maxima and sums, 3 numbers a row, and all get the whole sum. Source: Shoeybi et al., arXiv:1909.08053.
    """
    first = split.share(tokens).start

    @takes(
        dy="T rows columns",
        y="T rows columns",
        target="i64 b context",
        writes="dy",
        where={"rows == b * context": "as many targets as rows"},
    )
    def evaluate(dy: Array, y: Array, target: Array, scale: float) -> tuple[float, int]:
        labels = target.reshape(-1)
        refuse_outside("token_cross_entropy", "token", labels, tokens)
        top = split.max_into(ops.row_max_into(np.empty(len(y), y.dtype), y))
        sums, picked = both = np.empty((2, len(y)))
        ops.exponentials_into(dy, sums, picked, y, top, labels, first)
        split.sum_into(both)
        ops.cross_entropy_slope_into(dy, sums, labels, first, scale)
        return float((np.log(sums) - picked).sum()), int((picked == 0).sum())

    return Loss("token_cross_entropy", evaluate)
