"""Small decisions that all ranks take together at a step's end, without a message of their own: votes travel with the loss.

Each rank sets its votes before a step; every rank finds the sums in that step's report. So all ranks learn of a signal that one
of them received, or that all have written their part of a checkpoint, in the same step.
"""

from __future__ import annotations

import numpy as np

from hpcai.xp import Array

LEAVE, INTERRUPT, WRITTEN, FAILED, COMMITTED = range(5)
"""Places in the array: this rank was asked to leave, by a signal or by Ctrl-C; its part of the checkpoint under way is on disk;
it could not be written; and all of the checkpoint is, which rank 0 says.
"""

OF_CHECKPOINTS = [WRITTEN, FAILED, COMMITTED]
"""What is said of one, and taken back before the next."""


def none() -> Array:
    """Return an array of votes, none of them cast."""
    return np.zeros(5)
