"""Data sets from what a program has: arrays, or objects that hand out samples."""

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
    """A data set of arrays in memory, as npz:PATH reads them.

    Args:
        x: (n, ...) numbers or booleans. Bytes (uint8) are scaled to [-1, 1]; other numbers are taken as they are, in f32.
        y: (n,) labels or quantities: numbers, booleans or texts.
        x_test, y_test: the same for testing; without them a fixed fifth of the rows is held out, and n is 10 at least.
        task: "classification" or "regression"; without it texts and few whole numbers are classes.
        name: for the head of a run.
        validation: (x, y) for validation; or what is held out of the rows for training, as fit holds out what its option says
            of (x, y) as they are.
    Raises: DataError that says which arrays do not belong together, or which value is none for a model.

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
    """x_validation and y_validation. Raises: DataError for what is no pair."""
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise DataError(
            f"{name}: validation wants a pair (x, y), or hpcai.data.validation.Validation(fraction, seed), got "
            f"{type(validation).__name__}"
        )
    return {f"{key}_validation": _array(name, f"{key}_validation", one) for key, one in zip("xy", validation, strict=True)}


def _array(name: str, key: str, value: Any) -> Array:
    """The value as an array. Raises: DataError for rows of different lengths, and what numpy cannot take."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(f"{name}: {key} has masked values; wanted is a value in each place: fill or leave out")
    try:
        found = np.asarray(value)
        return found if found.dtype.kind != "O" else _of_objects(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: {key} is {type(value).__name__}, not an array, nor rows of one length: {error}") from None


def from_samples(
    train: Samples, test: Samples, *, classes: int = 0, name: str = "samples", validation: Samples | None = None
) -> Dataset:
    """A data set of objects with `__len__` and `take(index)`, for training and for testing.

    Args:
        train, test, validation: see samples.Samples. Every rank has its own, and asks it for its share of each batch.
        classes: how many there are, where targets are their numbers; 0: targets are quantities.
        name: for the head of a run.
    Raises: DataError for an object that has no samples, or whose first sample is none.
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
    """Texts, booleans or numbers that stand in an array of objects, as pandas has them; else the array as it is."""
    kinds = {type(one) for one in found.flat}
    if kinds == {str}:
        return found.astype(np.str_)
    if kinds == {bool}:
        return found.astype(np.bool_)
    return found.astype(np.float64) if kinds and kinds <= {int, float} else found
