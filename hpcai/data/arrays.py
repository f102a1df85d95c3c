"""Arrays as a data set: checks that they belong together, and the values that a model sees."""

from __future__ import annotations

from math import prod

import numpy as np

from hpcai.data.dataset import Dataset
from hpcai.data.targets import Targets, Task, classes_of, targets
from hpcai.data.validation import Validation, held_out, split_tests
from hpcai.errors import DataError, counted
from hpcai.xp import Array

Named = dict[str, Array]


def dataset(name: str, parts: Named, task: Task | None = None, validation: Validation | None = None) -> Dataset:
    """Return a data set of arrays by name. name: of the data set, also for errors.

    parts: x_train, x_test: (n, ...) numbers or booleans; y_train, y_test: (n,) numbers, booleans or texts; texts are classes.
    Bytes (uint8) are scaled to [-1, 1]; other numbers become f32 as they are, and booleans 0 and 1. task: see targets.py.
    validation: the share of the training rows that is held out, before anything is measured on them. Instead, `parts` may have
    x_validation and y_validation, on which nothing is measured either.

    Raises: DataError that names arrays that do not belong together, or a value that a model cannot use.
    """
    check_pair(name, {key: parts[key] for key in ("x_train", "y_train")})
    for side in ("test", "validation") if "x_validation" in parts else ("test",):
        _require_alike(name, parts, side)
    parts, held = _held_out(parts, task, validation)
    x_train = parts["x_train"]
    y = _targets(name, parts["y_train"].reshape(-1), parts["y_test"].reshape(-1), task)
    as_bytes = x_train.dtype == np.uint8
    rows = {key: _rows(name, key, parts[key]) for key in ("x_train", "x_test")}
    made = Dataset(
        name,
        rows["x_train"],
        y.train,
        rows["x_test"],
        y.test,
        x_train.shape[1:] or (1,),
        y.classes,
        2 / 255 if as_bytes else 1.0,
        -1.0 if as_bytes else 0.0,
        y.unit,
        warnings=(*y.warnings, *_coarse(x_train, rows["x_train"])),
        notes=(f"y: {y.said}",),
        encoding={"label": y.encoding},
    )
    return split_tests(made, held)


def _require_alike(name: str, parts: Named, side: str) -> None:
    """Raise DataError if x and y of that side do not match each other, or differ from the training rows in shape or kind."""
    check_pair(name, {f"{kind}_{side}": parts[f"{kind}_{side}"] for kind in "xy"}, least=2 if side == "test" else 1)
    x_train, x = parts["x_train"], parts[f"x_{side}"]
    if x_train.shape[1:] != x.shape[1:]:
        raise DataError(f"{name}: x_train has rows of shape {x_train.shape[1:]}, x_{side} of {x.shape[1:]}; wanted one shape")
    if (x_train.dtype == np.uint8) != (x.dtype == np.uint8):
        raise DataError(
            f"{name}: x_train is {x_train.dtype}, x_{side} {x.dtype}, but bytes (uint8) are scaled and others are not; "
            "give both the same dtype"
        )
    y_train, y = parts["y_train"], parts[f"y_{side}"]
    texts = [one.dtype.kind if one.dtype.kind in "US" else "" for one in (y_train, y)]
    if side == "validation" and texts[0] != texts[1]:
        raise DataError(f"{name}: y_train is {y_train.dtype}, y_{side} is {y.dtype}; wanted texts in both, or numbers in both")


def _held_out(parts: Named, task: Task | None, wanted: Validation | None) -> tuple[Named, int]:
    """Return the four arrays, in which rows for validation follow those for testing, and the number of rows for validation."""
    if "x_validation" in parts:
        return _behind_tests(parts, parts["x_validation"], parts["y_validation"]), len(parts["x_validation"])
    if wanted is None:
        return parts, 0
    labels = parts["y_train"].reshape(-1)
    train, held = held_out(len(labels), wanted, None if task == "regression" else labels)
    found = {f"{key}_train": parts[f"{key}_train"][train] for key in "xy"}
    return _behind_tests(parts | found, parts["x_train"][held], parts["y_train"][held]), len(held)


def _behind_tests(parts: Named, x: Array, y: Array) -> Named:
    return {
        "x_train": parts["x_train"],
        "y_train": parts["y_train"],
        "x_test": np.concatenate([parts["x_test"], x]),
        "y_test": np.concatenate([parts["y_test"].reshape(-1), y.reshape(-1)]),
    }


def check_pair(name: str, pair: Named, least: int = 2) -> None:
    """Check a pair of x and y: `least` rows or more, one y for each row, finite values of kinds in use. Raises: DataError."""
    (x_name, x), (y_name, y) = pair.items()
    one_hot = f"; if rows are one-hot, give {y_name}.argmax(1)" if y.ndim == 2 and y.shape[1] > 1 else ""
    for key, array, kinds, wanted in ((x_name, x, "buif", "numbers"), (y_name, y, "buifUS", "numbers or texts")):
        if array.dtype.kind not in kinds:
            raise DataError(f"{name}: {key} is {str(array.dtype)[:60]}; wanted {wanted}")
    if x.ndim < 1 or y.ndim < 1 or len(x) != len(y) or y.size != len(y):
        raise DataError(
            f"{name}: {x_name} of shape {x.shape} and {y_name} of shape {y.shape} do not belong together; "
            f"wanted (n, ...) and (n,){one_hot}"
        )
    if len(x) < least:
        held_out = ", of which two are for testing" if least > 2 else ""
        raise DataError(f"{name}: {x_name} has {len(x)} row{'s' * (len(x) != 1)}; wanted {least} at least{held_out}")
    if not prod(x.shape[1:]):
        raise DataError(f"{name}: {x_name} of shape {x.shape} has no features; wanted at least one number in each row")
    for key, array in pair.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(array))[0]
            raise DataError(
                f"{name}: {key} has {array[tuple(where)]} in row {where[0]:,} (from 0); wanted finite numbers: "
                "fill it, or leave its row out"
            )


def _rows(name: str, key: str, x: Array) -> Array:
    """Return x as (n, features) u8 or f32, contiguous and in this machine's byte order. Raises: DataError beyond f32's range."""
    if x.dtype.kind == "b" or x.dtype == np.uint8:
        return np.ascontiguousarray(x.reshape(len(x), -1), np.uint8)
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(x.reshape(len(x), -1), np.float32)
    if x.dtype.itemsize > 4 and not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise DataError(
            f"{name}: {key} has {x.reshape(len(x), -1)[row, column]} in row {row:,} (from 0), beyond what 32 bits hold; scale it"
        )
    return rows


def _coarse(x: Array, rows: Array) -> tuple[str, ...]:
    """Return a warning if f32 rounds away differences within features, such as times in seconds since 1970."""
    if rows.dtype != np.float32 or np.can_cast(x.dtype, np.float32):
        return ()
    flat = x.reshape(rows.shape).astype(np.float64, copy=False)
    lost, differ = np.abs(flat - rows).max(0), flat.max(0) > flat.min(0)
    coarse = int((differ & (lost > flat.std(0) / 100)).sum())
    if not coarse:
        return ()
    features = counted(rows.shape[1], "feature")
    return (
        f"x reaches {np.abs(rows).max():.3g}, and in {coarse:,} of {features} 32 bits round differences away: "
        "subtract the mean and divide by the deviation first",
    )


def _targets(name: str, train: Array, test: Array, task: Task | None) -> Targets:
    try:
        found = _named(train, test, task) if train.dtype.kind in "US" or test.dtype.kind in "US" else targets(train, test, task)
        if task is None and not found.classes and targets(train, train).classes:
            raise DataError(
                "y_train alone would be classes, but with y_test it is a quantity; give --task classification or regression"
            )
        if found.classes and not np.isin(found.test, found.train).any():
            raise DataError(f"y_test has none of y_train's classes ({found.said}); do both number the classes alike?")
        return found
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _named(train: Array, test: Array, task: Task | None) -> Targets:
    """Return targets of texts, which are classes. Raises: DataError if one array has numbers, or if `task` is regression."""
    if task == "regression" or {train.dtype.kind, test.dtype.kind} - {"U", "S"}:
        raise DataError(
            f"y_train is {train.dtype}, y_test {test.dtype}; texts are classes: wanted texts in both, or numbers in both"
        )
    values, labels = np.unique(np.concatenate([_texts(train), _texts(test)]), return_inverse=True)
    return classes_of(labels[: len(train)], labels[len(train) :], values.tolist())


def _texts(y: Array) -> Array:
    """Return an array of texts as Unicode. Raises: DataError for values that are not texts."""
    try:
        if y.dtype.kind == "S":
            return np.char.decode(y, "utf-8")
        codes = y.dtype.newbyteorder("<")
        y.astype(codes).tobytes().decode("utf-32-le")
        return y
    except UnicodeDecodeError as error:
        raise DataError(f"y has a text that is not Unicode ({error.reason}); write texts as str") from None
