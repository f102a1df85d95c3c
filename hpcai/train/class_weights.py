"""Class weights: the options give one weight for each class of the data, and the model's loss uses these weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcai import ops
from hpcai.comm.communicator import Communicator
from hpcai.data import sharding
from hpcai.data.dataset import Dataset
from hpcai.data.opening import printable
from hpcai.data.samples import taken
from hpcai.data.targets import shown
from hpcai.errors import DataError, UsageError, counted, meant
from hpcai.nn import losses
from hpcai.nn.models import Model
from hpcai.train.options.options import Options
from hpcai.xp import Array

TAKEN = 1024
"""How many samples are read at a time to count targets that are not in memory."""


def decided(options: Options, dataset: Dataset, comm: Communicator) -> Dataset:
    """Return the data set with the class weights that the options give, if any. Collective.

    Raises: UsageError, on all ranks alike.
    """
    given = options.class_weights
    if given is None:
        return dataset
    if not dataset.classes or dataset.context:
        raise UsageError(f"--class-weights are for classes, but the targets of {dataset.name} are not classes; leave them out")
    if given == "balanced":
        return dataset._replace(class_weights=balanced(_counts(dataset, comm)))
    assert not isinstance(given, str)
    return dataset._replace(class_weights=_of_each(given, dataset.class_names))


def balanced(counts: Array) -> Array:
    """Return (classes,) f64 weights for (classes,) counts of training labels: n / (classes * count), as scikit-learn's
    compute_class_weight does. Classes without a label get the weight 1 and are not counted in `classes`.

    >>> balanced(np.array([3, 1]))
    array([0.66666667, 2.        ])
    """
    found = counts > 0
    return np.where(found, counts.sum() / (found.sum() * np.maximum(counts, 1)), 1.0)


def weighing(model: Model, options: Options, dataset: Dataset) -> Model:
    """Return the model with the data's class weights in its loss. Raises: UsageError for a loss that takes no weights."""
    loss, weights = model.loss, dataset.class_weights
    if options.class_weights is None:
        return model
    if loss.weights is not None and (weights is None or not np.array_equal(loss.weights, weights)):
        raise UsageError(f"the loss of model {model.name} already has class weights; leave these or --class-weights out")
    if loss.weights is None and loss.evaluate is not ops.softmax_cross_entropy_into:
        raise UsageError(
            f"--class-weights are for nn.softmax_cross_entropy; model {model.name} has a loss of its own ({loss.name}): "
            "leave them out, and apply weights in that loss"
        )
    return model if weights is None else model._replace(loss=losses.softmax_cross_entropy(weights))


def _of_each(given: tuple[Any, ...], names: list[str]) -> Array:
    """Return (classes,) f64 weights, from weights in the order of the classes or from pairs of a name and a weight."""
    if not isinstance(given[0], tuple):
        if len(given) != len(names):
            raise UsageError(
                f"--class-weights has {counted(len(given), 'weight')} for {counted(len(names), 'class', 'classes')} "
                f"({shown(names)}); give one for each, in that order, or NAME=W,..."
            )
        return np.array(given, np.float64)
    places, found = {name: i for i, name in enumerate(names)}, np.ones(len(names))
    for name, weight in given:
        if name not in places:
            raise UsageError(
                f"--class-weights names {printable(name)!r}, which is not a class of the data{meant(name, names)}; "
                f"classes are {shown(names)}"
            )
        found[places[name]] = weight
    if not found.any():
        raise UsageError("--class-weights gives all classes the weight 0; give at least one class a larger weight")
    return found


def _counts(dataset: Dataset, comm: Communicator) -> Array:
    """Return (classes,) int64 counts of training samples. If samples are not in memory, each rank reads its share. Collective."""
    if dataset.samples is None:
        return np.bincount(dataset.y_train, minlength=dataset.classes)
    counts, failure = np.zeros(dataset.classes, np.int64), None
    try:
        _count_into(counts, dataset, sharding.shard(np.arange(dataset.train_samples), comm.rank, comm.size))
    except Exception as error:
        failure = error
    failures = comm.allgather_object(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    if first := next((one for one in failures if one), None):
        raise DataError(f"another rank could not count the classes: {first}")
    return comm.allreduce(counts)


def _count_into(counts: Array, dataset: Dataset, index: Array) -> None:
    assert dataset.samples is not None
    for begin in range(0, len(index), TAKEN):
        _, target = taken(dataset.samples, index[begin : begin + TAKEN], np.float32)
        if target.ndim != 1 or target.dtype.kind != "i" or not ((target >= 0) & (target < dataset.classes)).all():
            raise DataError(
                f"--class-weights balanced counts targets: whole numbers at least 0 and below {dataset.classes}; "
                f"take returned {target.dtype} of shape {target.shape}{f' up to {target.max()}' if target.size else ''}"
            )
        counts += np.bincount(target, minlength=dataset.classes)
