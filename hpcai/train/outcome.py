"""The results of a step and of an evaluation, as all ranks know them."""

from __future__ import annotations

from typing import NamedTuple

from hpcai.xp import Array


class Report(NamedTuple):
    """The result of one step: sums over the global batch, gradient norm, seconds, votes. Only the times differ between ranks."""

    loss_sum: float
    targets: int
    grad_norm: float
    step_s: float
    comm_s: float
    votes: Array


class Evaluation(NamedTuple):
    """The result of an evaluation.

    loss: the mean, weighted if classes have weights. accuracy: a fraction; None without classes. quantities, outputs: errors of
    all outputs together and of each output, in the target's unit (see report/figures.py). counts: of classes, on this rank.
    """

    loss: float
    accuracy: float | None
    quantities: dict[str, float | None]
    outputs: list[dict[str, float | None]]
    counts: Array | None
