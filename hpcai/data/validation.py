"""Training samples that are held out for validation. By them, not by test data, a run chooses its best checkpoint and its end.

The split is a function of the seed alone, the same on any number of ranks and after a resume. If targets are classes, every class
gives the same share, as with sklearn's train_test_split(stratify=y), and keeps at least one sample for training.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hpcai.data.dataset import Dataset
from hpcai.errors import DataError, counted
from hpcai.ops import streams
from hpcai.xp import Array

STREAM = 2**63
"""The number of the seed's random stream that draws the split; the streams of epochs have smaller numbers."""


class Validation(NamedTuple):
    """fraction: the share of the training samples that is held out, above 0 and below 1; seed: draws these samples."""

    fraction: float
    seed: int


def held_out(n: int, wanted: Validation, labels: Array | None = None) -> tuple[Array, Array]:
    """Return the indices of n samples for training and for validation, both sorted. labels: (n,); if they have few different
    values, each value gives the same share.

    Raises: DataError if either part would be empty.

    >>> train, validation = held_out(10, Validation(0.2, 0), np.arange(10) % 2)
    >>> len(train), sorted((validation % 2).tolist())
    (8, [0, 1])
    """
    count = round(n * wanted.fraction)
    if not 0 < count < n:
        raise DataError(
            f"--validation {wanted.fraction:g} of {counted(n, 'training sample')} is {count}; wanted is one at least, and not all"
        )
    order = streams.generator(wanted.seed, STREAM).permutation(n)
    values, group, sizes = np.unique(np.zeros(n) if labels is None else labels, return_inverse=True, return_counts=True)
    if len(values) * 2 > n:  # quantities, or texts that name single samples
        values, group, sizes = values[:1], np.zeros(n, np.int64), np.array([n])
    ranked = order[np.argsort(group[order], kind="stable")]
    ends = np.cumsum(sizes)
    chosen = [ranked[end - share : end] for end, share in zip(ends, _shares(sizes, count), strict=True)]
    validation = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(n), validation, assume_unique=True), validation


def _shares(sizes: Array, count: int) -> Array:
    """Return the number of samples taken from each group, `count` in all if that leaves one in each group, by the largest
    remainder.
    """
    exact = sizes * (count / sizes.sum())
    shares = np.minimum(np.floor(exact).astype(np.int64), sizes - 1)
    order = np.argsort(shares - exact, kind="stable")
    while shares.sum() < count and (shares < sizes - 1).any():  # one pass, unless many groups have one sample each
        for i in order:
            if shares.sum() < count and shares[i] < sizes[i] - 1:
                shares[i] += 1
    return shares


def split(dataset: Dataset, wanted: Validation | None) -> Dataset:
    """Return the data set with a part of its training samples for validation; of a text its tail, in one piece.

    Call it only if the data have no scales or the like, measured on the training rows; tables are split before such measures.
    """
    if wanted is None or dataset.validates:
        return dataset
    if dataset.samples is not None:
        train, validation = held_out(dataset.train_samples, wanted)
        first, *others = dataset.samples
        return dataset._replace(samples=(Part(first, train), others[0], Part(first, validation)))
    if dataset.context:
        return _split_text(dataset, wanted)
    train, validation = held_out(dataset.train_samples, wanted, dataset.y_train if dataset.classes else None)
    x, y = dataset.x_train, dataset.y_train
    return dataset._replace(x_train=x[train], y_train=y[train], x_validation=x[validation], y_validation=y[validation])


def _split_text(dataset: Dataset, wanted: Validation) -> Dataset:
    n, context = len(dataset.x_train), dataset.context
    cut = n - round(n * wanted.fraction)
    if n - cut < context + 1 or cut < 2 * context:
        raise DataError(
            f"--validation {wanted.fraction:g} leaves {cut:,} bytes for training and {n - cut:,} for validation; --context "
            f"{context} wants {2 * context:,} and {context + 1:,} at least"
        )
    none = np.zeros(0, np.int64)
    return dataset._replace(x_train=dataset.x_train[:cut], x_validation=dataset.x_train[cut:], y_validation=none)


def split_tests(dataset: Dataset, count: int) -> Dataset:
    """Return the data set with its last `count` test rows for validation: measures of the training rows do not include them."""
    if not count:
        return dataset
    x, y = dataset.x_test, dataset.y_test
    return dataset._replace(
        x_test=np.ascontiguousarray(x[:-count]), y_test=y[:-count], x_validation=x[-count:], y_validation=y[-count:]
    )


class Part:
    """Some of the samples of an object that hands out samples. index: their numbers in `source`."""

    def __init__(self, source: Any, index: Array):
        self.source, self.index = source, index

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: Array) -> tuple[Any, Any]:
        """See samples.Samples.take."""
        found: tuple[Any, Any] = self.source.take(self.index[index])
        return found
