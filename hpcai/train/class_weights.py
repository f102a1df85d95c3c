"""Weights of classes: from what the options say to one for each class of the data, and to a model whose loss has them."""

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
"""So many samples are asked for at a time where targets are counted that are not in memory."""


def decided(options: Options, dataset: Dataset, comm: Communicator) -> Dataset:
    """The data set with the weights of its classes that the options name, if they do. Collective.

    Raises: UsageError, on all ranks alike.
    """
    given = options.class_weights
    if given is None:
        return dataset
    if not dataset.classes or dataset.context:
        raise UsageError(f"--class-weights are for classes, and the targets of {dataset.name} are none; leave them out")
    if given == "balanced":
        return dataset._replace(class_weights=balanced(_counts(dataset, comm)))
    assert not isinstance(given, str)
    return dataset._replace(class_weights=_of_each(given, dataset.class_names))


def balanced(counts: Array) -> Array:
    """(classes,) counts of training labels to weights: n / (classes * count), as sklearn's compute_class_weight has them.

    Classes without a label do not count, and have the weight 1.

    >>> balanced(np.array([3, 1]))
    array([0.66666667, 2.        ])
    """
    found = counts > 0
    return np.where(found, counts.sum() / (found.sum() * np.maximum(counts, 1)), 1.0)


def weighing(model: Model, options: Options, dataset: Dataset) -> Model:
    """The model, its loss with the weights of the data's classes. Raises: UsageError for a loss that takes none."""
    loss, weights = model.loss, dataset.class_weights
    if options.class_weights is None:
        return model
    if loss.weights is not None and (weights is None or not np.array_equal(loss.weights, weights)):
        raise UsageError(f"the loss of model {model.name} has weights of classes; leave those or --class-weights out")
    if loss.weights is None and loss.evaluate is not ops.softmax_cross_entropy_into:
        raise UsageError(
            f"--class-weights are for nn.softmax_cross_entropy; model {model.name} has a loss of its own ({loss.name}): "
            "leave them out, and weigh there"
        )
    return model if weights is None else model._replace(loss=losses.softmax_cross_entropy(weights))


def _of_each(given: tuple[Any, ...], names: list[str]) -> Array:
    """A weight for each class, from weights in their order or from pairs of a name and a weight."""
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
                f"--class-weights names {printable(name)!r}, which is no class of the data{meant(name, names)}; "
                f"classes are {shown(names)}"
            )
        found[places[name]] = weight
    if not found.any():
        raise UsageError("--class-weights gives all classes the weight 0; one at least must have another")
    return found


def _counts(dataset: Dataset, comm: Communicator) -> Array:
    """Count the training samples of each class; if samples are not in memory, each rank asks for its share."""
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
                f"--class-weights balanced counts targets, whole numbers from 0 below {dataset.classes}; take gave "
                f"{target.dtype} of shape {target.shape}{f' up to {target.max()}' if target.size else ''}"
            )
        counts += np.bincount(target, minlength=dataset.classes)
