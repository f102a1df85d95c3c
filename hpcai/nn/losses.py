"""Losses: from predictions and targets, the sum over the batch and the gradient, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hpcai import ops
from hpcai.errors import UsageError
from hpcai.nn.split import WHOLE, Split
from hpcai.ops.door import refuse_outside, takes
from hpcai.xp import Array


class Loss(NamedTuple):
    """evaluate(dy, y, target, scale) writes dy = scale * gradient of the sum and returns (sum of losses, correct rows).

    counts: whether `evaluate` counts correct rows; otherwise there is no accuracy. weights: (classes,) f64; in the sum, a row's
    loss is multiplied by the weight of the row's target, and the mean over rows is that sum divided by the sum of these weights.
    """

    name: str
    evaluate: Callable[[Array, Array, Array, float], tuple[float, int]]
    counts: bool = True
    weights: Array | None = None


def softmax_cross_entropy(weights: Sequence[float] | Array | None = None) -> Loss:
    """-log softmax(y)[target] for each row; y (b, classes), target (b,) i64. A row is correct if its largest y is the target.

    weights: one for each class, at least 0; None: all are equal. In training the mean over a global batch is
    sum(weights[target] * loss) / sum(weights[target]), as of torch.nn.CrossEntropyLoss(weight), for any split into ranks and
    micro-batches; but a batch whose targets all have the weight 0 has the loss 0 and the gradient 0.
    Raises: UsageError for invalid weights.

    >>> softmax_cross_entropy(weights=[1, 4]).weights
    array([1., 4.])
    """
    if weights is None:
        return Loss("softmax_cross_entropy", ops.softmax_cross_entropy_into)
    given = np.array(weights, np.float64)
    if given.ndim != 1 or not np.isfinite(given).all() or not (given >= 0).all() or not given.any():
        raise UsageError(
            f"weights of shape {given.shape} are not class weights; "
            "expected one finite number of at least 0 for each class, not all of them 0"
        )

    def evaluate(dy: Array, y: Array, target: Array, scale: float) -> tuple[float, int]:
        return ops.weighted_softmax_cross_entropy_into(dy, y, target, given, scale)

    return Loss("softmax_cross_entropy", evaluate, weights=given)


def weights_of(loss: Loss, target: Array) -> list[float]:
    """Return the total weight of these targets, as a list of one, if classes have weights; else an empty list."""
    return [] if loss.weights is None else [float(loss.weights[target].sum())]


def mean_squared_error() -> Loss:
    """Mean over columns of (y - target)**2 for each row; y, target (b, k)."""
    return Loss("mean_squared_error", ops.mean_squared_error_into, counts=False)


def token_cross_entropy(split: Split = WHOLE, tokens: int = 256) -> Loss:
    """softmax_cross_entropy if each rank has the columns of some classes: y (rows, tokens / split.parts), target (b, context).

    Ranks combine the rows' maxima and sums, 3 numbers a row, and all ranks get the whole sum of losses.
    Source: Shoeybi et al., arXiv:1909.08053.
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
        ops.cross_entropy_backward_into(dy, sums, labels, first, scale)
        return float((np.log(sums) - picked).sum()), int((picked == 0).sum())

    return Loss("token_cross_entropy", evaluate)
