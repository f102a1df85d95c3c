"""A data set in memory: rows for training, rows for testing, and how to turn a row into numbers for a model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpcai import ops
from hpcai.xp import Array


class Dataset(NamedTuple):
    """Samples as flat rows.

    x_*: (n, prod(shape)) u8 or floats, of which the model sees x * scale + shift. y_*: (n,) i64 labels below `classes`, or for
    regression (classes = 0) (n, 1) f64 targets in units of `target_unit`.
    """

    name: str
    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    shape: tuple[int, ...]
    classes: int
    scale: float = 1.0
    shift: float = 0.0
    target_unit: float = 1.0
    warnings: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """How many numbers a model predicts for a row."""
        return self.classes or 1


def batch_into(out: Array, rows: Array, index: Array, dataset: Dataset) -> Array:
    """Fill the first len(index) rows of `out` (b, features) with samples of `rows`; returns them in the samples' shape."""
    ops.gather_into(out[: len(index)], rows, index, dataset.scale, dataset.shift)
    return out[: len(index)].reshape(len(index), *dataset.shape)


def constant_score(dataset: Dataset) -> float:
    """What a predictor that ignores its input scores on the test rows: accuracy of the commonest training label, or for
    regression the mean squared error of the training mean.
    """
    if dataset.classes:
        return float((dataset.y_test == np.bincount(dataset.y_train).argmax()).mean())
    return float(((dataset.y_test - dataset.y_train.mean()) ** 2).mean())


def hold_out(n: int, fraction: float = 0.2) -> tuple[Array, Array]:
    """Train and test indices of n rows: a fixed shuffle, of which the last `fraction` is for testing."""
    order = np.random.Generator(np.random.Philox(key=[0, n])).permutation(n)
    cut = n - max(1, int(n * fraction))
    return order[:cut], order[cut:]
