"""What a label's values become: classes, or numbers in units of their deviation."""

from __future__ import annotations

import numpy as np

from hpcai.xp import Array

MOST_CLASSES = 100
"""A label column of at most this many different whole numbers is a class, any other a number to predict."""


def targets(train: Array, test: Array) -> tuple[Array, Array, int, float]:
    """Labels 0..classes-1, or standardised targets with classes = 0 and the deviation that is their unit."""
    both = np.concatenate([train, test])
    values = np.unique(both)
    if len(values) <= MOST_CLASSES and (values == np.round(values)).all():
        return np.searchsorted(values, train), np.searchsorted(values, test), max(2, len(values)), 1.0
    unit = float(train.std()) or 1.0
    return ((train - train.mean()) / unit)[:, None], ((test - train.mean()) / unit)[:, None], 0, unit
