"""A short description of a data set's contents, by which a resumed run recognises its data."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xxhash

from hpcai.data.dataset import Dataset, take
from hpcai.xp import Array

Contents = dict[str, Any]
"""Counts and digests by name, as JSON."""


def contents(dataset: Dataset) -> Contents:
    """Describe the data that training sees. The files do not matter: they may be moved, renamed or compressed.

    Cost: one pass of xxh3, some 10 GB/s. The description reveals changes, but not a forgery.
    """
    seen, target = (dataset.scale, dataset.shift), (dataset.classes, dataset.target_unit)
    if dataset.samples is not None:
        return _of_samples(dataset)
    numbers: Contents = {
        f"training {dataset.unit}": len(dataset.x_train),
        f"test {dataset.unit}": len(dataset.x_test),
        "classes": dataset.classes,
    }
    if dataset.x_validation is not None:
        numbers[f"validation {dataset.unit}"] = len(dataset.x_validation)
        assert dataset.y_validation is not None
        held = {
            "validation inputs": _digest(dataset.x_validation, *seen),
            "validation targets": _digest(dataset.y_validation, *target),
        }
        numbers |= held
    if not dataset.context:  # the length of samples is no property of a text
        numbers["values a sample"] = list(dataset.shape)
    if names := [one for one in ((dataset.encoding or {}).get("label") or {}).get("values", []) if isinstance(one, str)]:
        numbers["names of classes"] = xxhash.xxh3_128("\0".join(names).encode()).hexdigest()
    if columns := (dataset.encoding or {}).get("columns"):
        numbers["names or scales of columns"] = xxhash.xxh3_128(json.dumps(columns).encode()).hexdigest()
    return numbers | {
        "training inputs": _digest(dataset.x_train, *seen),
        "training targets": _digest(dataset.y_train, *target),
        "test inputs": _digest(dataset.x_test, *seen),
        "test targets": _digest(dataset.y_test, *target),
    }


def _of_samples(dataset: Dataset) -> Contents:
    """Describe objects that hand out samples. Samples may be too many to read, so only their number, first and last are used."""
    found: Contents = {
        "training samples": dataset.train_samples,
        "test samples": dataset.test_samples,
        "classes": dataset.classes,
        "values a sample": list(dataset.shape),
    }
    parts = [("training", dataset, dataset.train_samples), ("test", dataset, dataset.test_samples)]
    if dataset.validates:
        parts.append(("validation", dataset.validating, dataset.validating.test_samples))
        found["validation samples"] = parts[-1][2]
    for side, part, count in parts:
        x, target = take(part, np.array([0, count - 1]), np.empty(0), train=side == "training")
        found |= {f"first or last {side} input": _digest(x), f"first or last {side} target": _digest(target)}
    return found


def changed(then: Contents, now: Contents) -> str:
    """Describe in words what differs from an earlier data set; empty if nothing does."""
    names = [name for name in now | then if then.get(name) != now.get(name)]
    counts = [f"{_shown(then.get(name))} {name} (now {_shown(now[name])})" for name in names if _is_count(now.get(name))]
    return ", ".join(counts) or " and ".join(f"other {name}" for name in names)


def _digest(array: Array, *how: float) -> str:
    digest = xxhash.xxh3_128(f"{array.dtype.str} {array.shape} {how}".encode())
    digest.update(array.reshape(-1).view("u1").data)
    return str(digest.hexdigest())


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, list))


def _shown(count: Any) -> str:
    return " x ".join(map(str, count)) if isinstance(count, list) else f"{count:,}" if isinstance(count, int) else "no"
