"""What a step came to, as all ranks know it."""

from __future__ import annotations

from typing import NamedTuple

from hpcai.xp import Array


class Report(NamedTuple):
    """What one step did, equal on all ranks except for the times: sums over the global batch, gradient norm, seconds, votes."""

    loss_sum: float
    targets: int
    grad_norm: float
    step_s: float
    comm_s: float
    votes: Array
