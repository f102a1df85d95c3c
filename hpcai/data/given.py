"""Data sets from a program's own objects: arrays, or objects that hand out samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcai.data import arrays
from hpcai.data.dataset import Dataset, hold_out
from hpcai.data.samples import Samples, taken
from hpcai.data.targets import Task
from hpcai.data.validation import Validation
from hpcai.errors import DataError
from hpcai.xp import Array


def from_arrays(
    x: Any,
    y: Any,
    x_test: Any = None,
    y_test: Any = None,
    *,
    task: Task | None = None,
    name: str = "arrays",
    validation: Validation | tuple[Any, Any] | None = None,
) -> Dataset:
    """Return a data set of arrays in memory, with the rules of npz:PATH.

    Args:
        x: (n, ...) numbers or booleans. Bytes (uint8) are scaled to [-1, 1]; other numbers become f32 as they are.
        y: (n,) labels or quantities: numbers, booleans or texts.
        x_test, y_test: the same for testing. Without them a fixed fifth of the rows is for testing, and n must be 10 or more.
        task: "classification" or "regression". Without it texts, and whole numbers with few different values, are classes.
        name: the name of the data set in a run's output and in errors.
        validation: (x, y) for validation; or hpcai.data.validation.Validation(fraction, seed), the share of the rows for training
            to hold out, as `fit` does with its option `validation`.
    Raises: DataError that names arrays that do not belong together, or a value that a model cannot use.

    >>> found = from_arrays(np.arange(40.0).reshape(20, 2), np.arange(20) % 2)
    >>> found.x_train.shape, found.x_test.shape, found.classes
    ((16, 2), (4, 2), 2)
    """
    if (x_test is None) != (y_test is None):
        raise DataError(f"{name}: {'x_test' if x_test is None else 'y_test'} is given alone; give both, or neither")
    pair = {"x": _array(name, "x", x), "y": _array(name, "y", y)}
    held = validation if isinstance(validation, Validation) else None
    theirs = {} if held is validation else _pair(name, validation)
    if x_test is not None:
        tests = {"x_test": _array(name, "x_test", x_test), "y_test": _array(name, "y_test", y_test)}
        parts = {"x_train": pair["x"], "y_train": pair["y"], **tests}
        return arrays.dataset(name, parts | theirs, task, held)
    arrays.check_pair(name, pair, least=10)
    train, test = hold_out(len(pair["x"]))
    parts = {f"{key}_{side}": array[index] for side, index in (("train", train), ("test", test)) for key, array in pair.items()}
    return arrays.dataset(name, parts | theirs, task, held)


def _pair(name: str, validation: Any) -> dict[str, Any]:
    """Return x_validation and y_validation by name. Raises: DataError if `validation` is not a pair."""
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise DataError(
            f"{name}: validation wants a pair (x, y), or hpcai.data.validation.Validation(fraction, seed), got "
            f"{type(validation).__name__}"
        )
    return {f"{key}_validation": _array(name, f"{key}_validation", one) for key, one in zip("xy", validation, strict=True)}


def _array(name: str, key: str, value: Any) -> Array:
    """Return the value as an array. Raises: DataError for masked values, rows of different lengths, what numpy cannot take."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(f"{name}: {key} has masked values; wanted is a value in each place: fill them or leave their rows out")
    try:
        found = np.asarray(value)
        return found if found.dtype.kind != "O" else _of_objects(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: {key} is {type(value).__name__}, not an array, nor rows of one length: {error}") from None


def from_samples(
    train: Samples, test: Samples, *, classes: int = 0, name: str = "samples", validation: Samples | None = None
) -> Dataset:
    """Return a data set of objects with `__len__` and `take(index)`, which hand out samples.

    Args:
        train, test, validation: see samples.Samples. Every rank has its own objects, and asks them for its share of each batch.
        classes: the number of classes if targets are classes, numbered from 0; 0 if targets are quantities.
        name: the name of the data set in a run's output and in errors.
    Raises: DataError for an object without these methods or without samples, or whose first sample does not fit the protocol.
    """
    named = {"train": train, "test": test} | ({} if validation is None else {"validation": validation})
    for side, samples in named.items():
        if not hasattr(samples, "take") or not hasattr(samples, "__len__"):
            raise DataError(f"{name}: {side} is {type(samples).__name__}; wanted is an object with __len__ and take(index)")
        if not len(samples):
            raise DataError(f"{name}: {side} has no samples; wanted is one at least")
    x, _ = taken((train, test), np.zeros(1, np.int64), np.float64)
    rows, labels = np.zeros((0, int(np.prod(x.shape[1:])))), np.zeros(0, np.int64)
    return Dataset(name, rows, labels, rows, labels, x.shape[1:], classes, samples=tuple(named.values()))


def _of_objects(found: Array) -> Array:
    """Return an array of objects, as pandas makes them, as texts, booleans or f64 if all of it is one kind; else unchanged."""
    kinds = {type(one) for one in found.flat}
    if kinds == {str}:
        return found.astype(np.str_)
    if kinds == {bool}:
        return found.astype(np.bool_)
    return found.astype(np.float64) if kinds and kinds <= {int, float} else found
