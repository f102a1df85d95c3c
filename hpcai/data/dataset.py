"""A data set in memory: rows for training, rows for testing, and how to turn a row into numbers for a model."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hpcai import ops
from hpcai.data import samples
from hpcai.ops.door import takes
from hpcai.xp import Array


class Dataset(NamedTuple):
    """Samples as flat rows.

    x_*: (n, prod(shape)) u8 or floats; the model sees x * scale + shift. y_*: (n,) i64 labels below `classes`, or for regression
    (classes = 0) (n, 1) f64 targets in units of `target_unit`. For text (context > 0) x_* are bytes, y_* are empty, and a sample
    is a window of `context` bytes. notes: remarks on the data, which a run prints first. encoding: what predictions need to know
    of the data, JSON-able: {"label": {"kind": "classes", "values": [...]}} and the like (see targets.py, columns.py). contents:
    the description of the data in a checkpoint (see contents.py). samples: objects for training, testing and maybe validation
    that hand out samples which are not in memory (see samples.py); then the arrays have no rows. class_weights: (classes,) f64,
    by which a loss weighs its targets.
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
    context: int = 0
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    encoding: dict[str, Any] | None = None
    contents: dict[str, Any] | None = None
    samples: tuple[Any, ...] | None = None
    class_weights: Array | None = None
    x_validation: Array | None = None
    y_validation: Array | None = None

    @property
    def validates(self) -> bool:
        """Whether some samples are held out for validation."""
        return self.x_validation is not None or (self.samples is not None and len(self.samples) > 2)

    @property
    def validating(self) -> Dataset:
        """This data set, with the samples for validation in place of the samples for testing."""
        if self.samples is not None:
            return self._replace(samples=(self.samples[0], self.samples[2]))
        assert self.x_validation is not None
        assert self.y_validation is not None
        return self._replace(x_test=self.x_validation, y_test=self.y_validation)

    @property
    def outputs(self) -> int:
        """The number of values that a model predicts for a row."""
        return self.classes or 1

    @property
    def class_names(self) -> list[str]:
        """The names of classes in the data; where the data have none, the classes' numbers."""
        label = (self.encoding or {}).get("label") or {}
        names = [str(value) for value in label["values"]] if label.get("kind") == "classes" else []
        return names + [str(i) for i in range(len(names), self.classes)]

    @property
    def target_name(self) -> str:
        """The name of the column that is predicted, if it has one."""
        return str(((self.encoding or {}).get("label") or {}).get("name", ""))

    @property
    def train_samples(self) -> int:
        """The number of samples for training. For text one window fewer than fits, so that the first can begin at any `phase`."""
        if self.samples is not None:
            return len(self.samples[0])
        return len(self.x_train) // self.context - 1 if self.context else len(self.x_train)

    @property
    def test_samples(self) -> int:
        """The number of samples for testing."""
        if self.samples is not None:
            return len(self.samples[1])
        return (len(self.x_test) - 1) // self.context if self.context else len(self.x_test)

    @property
    def targets_a_sample(self) -> int:
        """The number of predictions per sample."""
        return self.context or 1

    @property
    def unit(self) -> str:
        """The unit in which targets are counted."""
        return "bytes" if self.context else "samples"


def take(dataset: Dataset, index: Array, rows: Array, train: bool = True, phase: int = 0) -> tuple[Array, Array]:
    """Return (x, target) of the samples `index`, (b,) i64.

    rows: a buffer for x, which also gives its dtype; phase: the byte of a text where window 0 begins.
    """
    if dataset.samples is not None:
        x, target = samples.taken(dataset.samples, index, rows.dtype, train)
        samples.require(x, target, dataset.shape, dataset.classes)
        return x, target
    x, y = (dataset.x_train, dataset.y_train) if train else (dataset.x_test, dataset.y_test)
    if dataset.context:
        return windows(x, index, dataset.context, phase)
    if len(x) != len(y):
        raise ValueError(f"take wants a label for each row, got {len(y)} for {len(x)}")
    return batch_into(rows, x, index, dataset), y[index]


@takes(
    content="u8 n",
    index="i64 b <max(0,(n-phase-1)//context)",
    where={"context >= 1": "windows of 1 byte at least", "phase >= 0": "a phase from 0"},
)
def windows(content: Array, index: Array, context: int, phase: int = 0) -> tuple[Array, Array]:
    """Return windows of bytes, and the byte after each byte: two (b, context) i64 arrays. Window i begins at phase + i * context.

    >>> windows(np.frombuffer(b"abcdefg", np.uint8), np.array([1]), 2)
    (array([[ 99, 100]]), array([[100, 101]]))
    """
    places = phase + index[:, None] * context + np.arange(context + 1)
    found = content[places].astype(np.int64)
    return np.ascontiguousarray(found[:, :-1]), np.ascontiguousarray(found[:, 1:])


@takes(
    out="T room k",
    rows="u8|bool|f32|f64 n k",
    index="i64 b <n",
    writes="out",
    where={"b <= room": "room for the batch"},
)
def batch_into(out: Array, rows: Array, index: Array, dataset: Dataset) -> Array:
    """Fill the first len(index) rows of `out` with samples of `rows`, scaled and shifted; returns them as (b, *dataset.shape)."""
    ops.gather_into.unchecked(out[: len(index)], rows, index, dataset.scale, dataset.shift)
    return out[: len(index)].reshape(len(index), *dataset.shape)


def constant_score(dataset: Dataset) -> float | None:
    """Return the score on the test rows of a predictor that ignores its input: the accuracy of the commonest training label, or
    for regression the mean squared error of the training mean. None if targets are not in memory.
    """
    if dataset.samples is not None:
        return None
    if dataset.context:
        return float((dataset.x_test == np.bincount(dataset.x_train).argmax()).mean())
    if dataset.classes:
        return float((dataset.y_test == np.bincount(dataset.y_train).argmax()).mean())
    return float(((dataset.y_test - dataset.y_train.mean()) ** 2).mean())


def hold_out(n: int, fraction: float = 0.2) -> tuple[Array, Array]:
    """Return the indices of n rows for training and for testing: a fixed shuffle, whose last `fraction` is for testing."""
    order = np.random.Generator(np.random.Philox(key=[0, n])).permutation(n)
    cut = n - max(1, int(n * fraction))
    return order[:cut], order[cut:]
