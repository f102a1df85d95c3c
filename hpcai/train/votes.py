"""Decisions that all ranks make together at the end of a step. Votes need no extra message: they are summed with the loss.

Each rank sets its votes before a step, and every rank finds the sums in the step's report. So in the same step all ranks learn
that a rank received a signal, or that all have written their shards of a checkpoint.
"""

from __future__ import annotations

import numpy as np

from hpcai.xp import Array

LEAVE, INTERRUPT, WRITTEN, FAILED, COMMITTED = range(5)
"""Positions in the array of votes. LEAVE, INTERRUPT: a signal, or Ctrl-C, asked this rank to leave. WRITTEN: this rank's shard of
the checkpoint is on disk. FAILED: it could not be written. COMMITTED: rank 0 has committed the checkpoint.
"""

OF_CHECKPOINTS = [WRITTEN, FAILED, COMMITTED]
"""The votes about one checkpoint, which are reset before the next checkpoint."""


def none() -> Array:
    """Return an array of votes, none of them cast."""
    return np.zeros(5)
