"""The results of a step and of an evaluation, as all ranks know them."""

from __future__ import annotations

from typing import NamedTuple

from hpcai.xp import Array


class Report(NamedTuple):
    """The result of one step, equal on all ranks but for the times: sums over the global batch, gradient norm, seconds, votes."""

    loss_sum: float
    targets: int
    grad_norm: float
    step_s: float
    comm_s: float
    votes: Array


class Evaluation(NamedTuple):
    """The result of an evaluation.

    loss: the mean, by weight where classes have weights. accuracy: None where nothing is right or wrong. quantities, outputs: of
    all outputs together and of each, in the target's unit (see report/figures.py). counts: this rank's, of classes.
    """

    loss: float
    accuracy: float | None
    quantities: dict[str, float | None]
    outputs: list[dict[str, float | None]]
    counts: Array | None
