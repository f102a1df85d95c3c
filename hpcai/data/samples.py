"""Samples that an object hands out on request: data that is not an array in memory."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from hpcai.errors import DataError, counted
from hpcai.xp import Array


class Samples(Protocol):
    """The protocol of objects that can be trained on. Every rank has its own object, and asks it for its share of each batch."""

    def __len__(self) -> int:
        """The number of samples, the same on all ranks."""

    def take(self, index: Array, /) -> tuple[Any, Any]:
        """Return (x, target) of the samples with the numbers `index`, (b,) i64: arrays with a row for each sample, in that order.

        x: (b, ...) floats, which become the run's dtype, or integers. target: (b,) whole numbers below `classes`, (b, context)
        tokens, or (b, k) quantities. The same numbers give the same samples on every rank.
        """


def taken(samples: tuple[Samples, ...], index: Array, dtype: Any, train: bool = True) -> tuple[Array, Array]:
    """Return (x, target) of the samples `index`: x in `dtype` or i64, target in f64 or i64. Raises: DataError for anything but
    numbers with a row for each sample.
    """
    source = samples[0 if train else 1]
    asked = index if len(index) else np.zeros(1, np.int64)  # a share may be empty, which few objects expect
    x, target = (np.asarray(one) for one in source.take(asked))
    if len(x) != len(asked) or len(target) != len(asked) or x.ndim < 2:
        raise DataError(
            f"take gave x of shape {x.shape} and targets of shape {target.shape} for {counted(len(asked), 'sample')}; "
            f"wanted are ({len(asked)}, ...) and ({len(asked)},) or ({len(asked)}, k)"
        )
    if x.dtype.kind not in "fiub" or target.dtype.kind not in "fiu":
        raise DataError(f"take gave x of {x.dtype} and targets of {target.dtype}; wanted are numbers")
    x = np.ascontiguousarray(x, dtype if x.dtype.kind == "f" else np.int64)
    target = np.ascontiguousarray(target, np.float64 if target.dtype.kind == "f" else np.int64)
    return x[: len(index)], target[: len(index)]


def require(x: Array, target: Array, shape: tuple[int, ...], classes: int) -> None:
    """Raise DataError for samples of a shape other than `shape`, the first sample's, and for labels that are not classes."""
    if len(x) and x.shape[1:] != shape:
        raise DataError(f"take gave samples of shape {x.shape[1:]}, but before of shape {shape}; wanted is one shape")
    if not classes and target.dtype.kind == "i" and target.ndim == 1:
        raise DataError(
            "take gave whole numbers as targets, but the objects have no attribute classes (how many); give it, or floats"
        )
    if classes and (target.dtype.kind != "i" or (target.ndim == 2 and x.dtype.kind == "f")):
        given = f"{target.dtype} of shape {target.shape}"
        raise DataError(f"take gave targets of {given}; wanted are whole numbers from 0 to below the {classes} classes, (b,)")
    if classes and target.dtype.kind == "i" and target.ndim == 1 and len(target):
        lowest, highest = int(target.min()), int(target.max())
        if lowest < 0 or highest >= classes:
            wrong = lowest if lowest < 0 else highest
            raise DataError(f"take gave the label {wrong}; wanted are whole numbers from 0 to below the {classes} classes")
