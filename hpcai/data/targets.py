"""The encoding of labels: classes, or a quantity in units of its standard deviation."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from hpcai.data.opening import printable
from hpcai.data.scaling import FAR, measure
from hpcai.errors import DataError, counted
from hpcai.xp import Array

FEW_CLASSES = 20
"""Whole numbers with at most this many different values are classes; with more, only if they count from 0 without a gap. In
either case a class has two labels or more on average.
"""

MOST_CLASSES = 1_000
"""A label with more different values than this is not classes, unless --task classification is given."""

MOST_NAMED_CLASSES = 100_000
"""The limit with --task classification."""

EXACT = 2**53
"""From this number on f64 does not hold all whole numbers."""

SHOWN = 5

Task = Literal["classification", "regression"]


class Targets(NamedTuple):
    """train, test: (n,) i64 labels below `classes`, or if classes = 0 (n, 1) f64 distances from the training mean, in `unit`.

    encoding: for turning predictions back, JSON-able: {"kind": "classes", "values": [...]} in the order of the labels, or
    {"kind": "number", "mean": ..., "deviation": ...}. said: a description of the targets, for the user.
    """

    train: Array
    test: Array
    classes: int
    unit: float
    encoding: dict[str, Any]
    said: str
    warnings: tuple[str, ...] = ()


def targets(train: Array, test: Array, task: Task | None = None) -> Targets:
    """Return targets of (n,) finite numbers or booleans: classes or a quantity, as `task` says, else as the values suggest.

    Whole numbers are classes if they have at most FEW_CLASSES different values, or are 0, 1, ... without a gap, and if each value
    comes twice on average. All other numbers are a quantity, as are ages and counts. Classes differ by exact value, also beyond
    2^53.

    Raises: DataError: too many classes, or a quantity with numbers that f64 does not hold or that are too far from the mean.
    """
    train, test = _of_one_dtype(train, test)
    values = np.unique(np.concatenate([train, test]))
    classes = task == "classification" or (task is None and _are_classes(values, len(train) + len(test)))
    if classes:
        train, test = np.searchsorted(values, train), np.searchsorted(values, test)
        found = classes_of(train, test, [_plain(value) for value in values.tolist()], given=task is not None)
    else:
        found = _quantity(train, test)
    return found if task else found._replace(said=found.said + _otherwise(values, classes))


def _otherwise(values: Array, classes: bool) -> str:
    """Return advice on how to have whole numbers read the other way; empty for other numbers."""
    if not _are_whole(values) or len(values) < 3 or max(-float(values[0]), float(values[-1])) > EXACT:
        return ""
    return "; --task regression takes it as a quantity" if classes else "; --task classification takes its values as classes"


def classes_of(train: Array, test: Array, values: list[Any], given: bool = False) -> Targets:
    """Return targets that are classes. train, test: labels below len(values); values: the classes'; given: whether the user asked
    for classes. Raises: DataError for too many classes.
    """
    if len(values) > (MOST_NAMED_CLASSES if given else MOST_CLASSES):
        more = "; --task classification takes more" if len(values) <= MOST_NAMED_CLASSES else ""
        raise DataError(f"the label has {len(values):,} different values, too many to be classes{more}")
    seen = np.unique(train)
    names, absent = [str(value) for value in values], [str(values[i]) for i in np.setdiff1d(test, seen)]
    warnings = []
    if absent:
        warnings.append(f"of the label's classes only rows for testing have {shown(absent)}: no model can learn that")
    if len(seen) < 2:
        warnings.append(f"all rows for training have the label {names[seen[0]]}: there is nothing to learn")
    said = f"classification with {counted(len(values), 'class', 'classes')} ({shown(names)})"
    encoding = {"kind": "classes", "values": values}
    return Targets(train.astype(np.int64), test.astype(np.int64), max(2, len(values)), 1.0, encoding, said, tuple(warnings))


def shown(names: list[str]) -> str:
    """Return the first few names, and how many more there are, for a message."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(printable(name if len(name) < 40 else f"{name[:36]}...") for name in names[:SHOWN]) + more


def _are_whole(values: Array) -> bool:
    return values.dtype.kind != "f" or bool((values == np.floor(values)).all())


def _plain(value: Any) -> Any:
    """Return a class as people write it: 3, not 3.0."""
    return int(value) if value == int(value) else value


def _are_classes(values: Array, labels: int) -> bool:
    if not _are_whole(values) or 2 * len(values) > labels:
        return False
    counted = len(values) <= MOST_CLASSES and values[0] == 0 and values[-1] == len(values) - 1
    return len(values) <= FEW_CLASSES or bool(counted)


def _quantity(train: Array, test: Array) -> Targets:
    both = [_exact_floats(part) for part in (train, test)]
    scale = measure(both[0][:, None])
    warnings = []
    if not scale.deviation[0]:
        warnings.append(f"all rows for training have the label {train[0]}: there is nothing to learn")
        scale = scale._replace(deviation=np.ones(1))
    z = [scale.apply(part[:, None]) for part in both]
    if not (np.abs(z[1]) < FAR).all():
        worst = test[np.abs(z[1][:, 0]).argmax()]
        raise DataError(
            f"the label {worst} of a row for testing is too far from the training rows' to be predicted; leave it out"
        )
    unit = float(np.ldexp(scale.deviation[0], scale.exponent[0]))
    return Targets(z[0], z[1], 0, unit, {"kind": "number"} | scale.described(0), "regression", tuple(warnings))


def _exact_floats(values: Array) -> Array:
    """Return values as f64. Raises: DataError for whole numbers that f64 does not represent, and for numbers beyond its range."""
    with np.errstate(over="ignore"):
        floats = values.astype(np.float64)
    doubtful = values[np.abs(floats) >= EXACT] if values.dtype.kind in "iuO" else values[~np.isfinite(floats)]
    wrong = next((value for value in doubtful.tolist() if not np.isfinite(np.float64(value)) or int(float(value)) != value), None)
    if wrong is not None:
        raise DataError(
            f"the label {wrong} is beyond what f64 holds exactly, so as a quantity it would change; "
            "if it names a class, give --task classification"
        )
    return floats


def _of_one_dtype(train: Array, test: Array) -> tuple[Array, Array]:
    """Return both in one dtype that holds all their values: numpy would make f64 of i64 and u64, which merges large values."""
    parts = [part.astype(np.int64) if part.dtype.kind == "b" else np.asarray(part) for part in (train, test)]
    kinds = {part.dtype.kind for part in parts}
    if kinds == {"i", "u"}:
        exact = [part.astype(object) for part in parts]
        low, high = min(part.min() for part in exact), max(part.max() for part in exact)
        return tuple(part.astype(np.int64 if high < 2**63 else np.uint64 if low >= 0 else object) for part in exact)  # type: ignore
    if kinds <= {"i"} or kinds <= {"u"} or "O" in kinds:
        return parts[0], parts[1]
    floats = [_exact_floats(part) for part in parts]
    return floats[0], floats[1]
