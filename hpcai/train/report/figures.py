"""Figures of a model on test data, beside loss and accuracy: for each class, or for quantities in the target's unit.

Each rank counts its own predictions, and the counts of all ranks are combined afterwards. Counts of classes are summed.
Quantities are merged as moments, which avoid the cancellation of sums of squares. Source: Chan, Golub & LeVeque, The American
Statistician 37(3), 1983, doi:10.1080/00031305.1983.10483115.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.data.dataset import Dataset
from hpcai.data.opening import printable
from hpcai.errors import counted
from hpcai.nn.external import is_external
from hpcai.nn.losses import weights_of
from hpcai.nn.models import Model
from hpcai.xp import Array

MOST_CONFUSED = 100
"""With more classes than this there is no confusion matrix, only figures of each class."""

MOST_LISTED = 1000
"""With more classes than this the summary lists the worst ones; with more outputs, the first ones."""

MOST_SHOWN, WORST_SHOWN = 20, 5
"""With up to MOST_SHOWN classes all are printed; with more, the WORST_SHOWN worst ones."""

LONGEST_NAME = 24


class Quantities(NamedTuple):
    """Moments of n samples for each of k outputs, arrays of (k,) f64. mean, spread: the mean of the targets, and the sum of their
    squared deviations from it; absolute, squared: sums of absolute and squared errors.
    """

    n: int
    mean: Array
    spread: Array
    absolute: Array
    squared: Array

    def merged(self, other: Quantities) -> Quantities:
        """Return the figures of both parts together."""
        n, between = self.n + other.n, other.mean - self.mean
        return Quantities(
            n,
            self.mean + between * (other.n / n),
            self.spread + other.spread + between**2 * (self.n * other.n / n),
            self.absolute + other.absolute,
            self.squared + other.squared,
        )


class Figures:
    """The counts of this rank while a model is evaluated.

    weight: (1,) the total weight of the targets if classes have weights, else (0,). counts: (classes, predicted classes) int64;
    with more than MOST_CONFUSED classes (3, classes): correct, predicted and true samples of each class; None if no classes
    are predicted. quantities: None if no quantities are predicted.
    """

    def __init__(self, dataset: Dataset, model: Model):
        self.classes, self.loss = dataset.classes, model.loss
        self.predicts = not dataset.context and (model.loss.counts or not is_external(model))
        square = self.classes <= MOST_CONFUSED
        self.counts: Array | None = None
        if self.classes and self.predicts and model.loss.counts:
            self.counts = np.zeros((self.classes if square else 3, self.classes), np.int64)
        self.weight = np.zeros(int(model.loss.weights is not None))
        self.quantities: Quantities | None = None

    def add(self, y: Array, target: Array) -> None:
        """Count the predictions y, (b, outputs), of a batch with these targets."""
        self.weight += weights_of(self.loss, target)
        if not self.predicts or not len(y):
            return
        if self.counts is not None and target.ndim == 1 and y.shape == (len(target), self.classes):
            self._count(np.asarray(y).argmax(1), target)
        elif not self.classes and len(y) == len(target) and y.size == target.size:
            part = _measured(*(np.asarray(one, np.float64).reshape(len(y), -1) for one in (y, target)))
            self.quantities = part if self.quantities is None else self.quantities.merged(part)

    def _count(self, predicted: Array, target: Array) -> None:
        assert self.counts is not None
        k = self.classes
        if len(self.counts) == k:
            self.counts += np.bincount(target * k + predicted, minlength=k * k).reshape(k, k)
        else:
            right = target[target == predicted]
            self.counts += np.stack([np.bincount(some, minlength=k) for some in (right, predicted, target)])


def _measured(y: Array, target: Array) -> Quantities:
    mean = target.mean(0)
    off = y - target
    return Quantities(len(y), mean, ((target - mean) ** 2).sum(0), np.abs(off).sum(0), (off**2).sum(0))


def in_units(parts: Iterable[Quantities | None], unit: float) -> tuple[dict[str, float | None], list[dict[str, float | None]]]:
    """Return mean absolute error, root mean square error and R2 of all ranks' parts: as means over outputs, and for each output.

    unit: the size of 1 in the targets, in the target's unit. R2 is that of sklearn.metrics.r2_score, relative to the mean of
    these targets. If all targets are equal, R2 is 1 for an exact model and else 0; for fewer than two samples it is None.
    """
    whole: Quantities | None = None
    for part in parts:
        whole = part if whole is None else whole if part is None else whole.merged(part)
    if whole is None:
        return {}, []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        mae, rmse = unit * whole.absolute / whole.n, unit * np.sqrt(whole.squared / whole.n)
        r2 = np.where(whole.spread > 0, 1 - whole.squared / whole.spread, np.where(whole.squared == 0, 1.0, 0.0))
    each = np.stack([mae, rmse, r2], 1)
    found = [
        {"test_mae": one[0], "test_rmse": one[1], "test_r2": one[2] if whole.n > 1 else None}
        for one in [each.mean(0).tolist(), *each.tolist()]
    ]
    return found[0], found[1:]


def by_class(counts: Array | None, names: list[str], comm: Communicator) -> dict[str, Any]:
    """Return the summary's figures of classes, from the counts of all ranks: `classes`, and `confusion` if it is not too large.

    classes: name, precision, recall, f1 and support of each, as in sklearn.metrics.precision_recall_fscore_support with
    zero_division=0, in the order of the labels; of more than MOST_LISTED classes, those with the lowest f1 and some support.
    confusion: rows are classes, columns are predicted classes. Collective: one sum.
    """
    if counts is None:
        return {}
    total = comm.allreduce(counts.copy())
    square = total.shape[0] == total.shape[1]
    right, predicted, support = (total.diagonal(), total.sum(0), total.sum(1)) if square else total
    if not support.sum():
        return {}
    precision, recall = right / np.maximum(predicted, 1), right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(predicted + support, 1)
    listed = range(len(names)) if len(names) <= MOST_LISTED else _worst(f1, support, MOST_LISTED)
    columns = zip(precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True)
    each = [dict(zip(("precision", "recall", "f1", "support"), one, strict=True)) for one in columns]
    found: dict[str, Any] = {"classes": [{"name": names[i]} | each[i] for i in listed]}
    return found | ({"confusion": total.tolist()} if square else {})


def _worst(f1: Array, support: Array, most: int) -> list[int]:
    """Return the `most` classes with the lowest f1 among those with support; among equals, larger support first."""
    order = np.lexsort((-support, f1))
    return [int(i) for i in order if support[i]][:most]


def table(summary: dict[str, Any], classes: int) -> str:
    """Return the table of classes that is printed at the end; empty if the summary has none. classes: their number."""
    listed = summary.get("classes")
    if not listed:
        return ""
    every, confusion = classes <= MOST_SHOWN, summary.get("confusion")
    if every:
        chosen = list(range(len(listed)))
    else:
        f1, support = (np.array([one[key] for one in listed]) for key in ("f1", "support"))
        chosen = _worst(f1, support, WORST_SHOWN)
    rows = [["class", "precision", "recall", "f1", "support", *["mostly taken for"] * (confusion is not None)]]
    for i in chosen:
        one = listed[i]
        figures = [f"{one[key]:.4f}" for key in ("precision", "recall", "f1")]
        taken_for = [_taken_for(confusion[i], i, listed)] if confusion is not None else []
        rows.append([_short(one["name"]), *figures, f"{one['support']:,}", *taken_for])
    widths = [max(map(len, column)) for column in zip(*(row[:5] for row in rows), strict=True)]
    lines = [_line(row, widths) for row in rows]
    if not every:
        lines.insert(0, f"  the {counted(len(chosen), 'worst class', 'worst classes')} of {classes:,}, by f1:")
    return "\n".join(lines)


def _line(row: list[str], widths: list[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:5], widths[1:], strict=True)), *row[5:]]
    return f"  {'  '.join(cells)}".rstrip()


def _taken_for(row: list[int], i: int, listed: list[dict[str, Any]]) -> str:
    """Return the wrong class that was predicted most often, and how often."""
    wrong = [0 if j == i else count for j, count in enumerate(row)]
    most = max(wrong)
    return f"{_short(listed[wrong.index(most)]['name'])} ({most:,})" if most else ""


def _short(name: str) -> str:
    said = printable(name)
    return said if len(said) <= LONGEST_NAME else f"{said[: LONGEST_NAME - 3]}..."


def words(record: dict[str, Any], target: str) -> str:
    """Describe the quantities of an epoch's record; empty if there are none. target: the name of the target's column, or "".

    >>> words({"test_mae": 12.345678, "test_rmse": 20.0, "test_r2": 0.98765}, "price")
    'test price: MAE 12.35, RMSE 20, R2 0.9877'
    """
    if record.get("test_mae") is None:
        return ""
    r2 = record["test_r2"]
    fit = "" if r2 is None else f", R2 {r2:.4f}" if math.isfinite(r2) else ", R2 not finite"
    return (
        f"test{f' {_short(target)}' if target else ''}: MAE {amount(record['test_mae'])}, RMSE {amount(record['test_rmse'])}{fit}"
    )


def amount(value: float | None) -> str:
    """Return a quantity as text, rounded for reading.

    >>> amount(1234567.8), amount(12.3456), amount(None)
    ('1,234,568', '12.35', 'not finite')
    """
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e10 else f"{value:.4g}"
