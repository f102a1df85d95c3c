"""The optimizers that --optimizer names. An entry's `make(layout, **values)` returns an Optimizer for this parameter layout."""

from __future__ import annotations

from typing import Any

from hpcai.arena import Layout
from hpcai.entry import Entry
from hpcai.optim import optimizers
from hpcai.optim.optimizers import Optimizer


def _sgd(layout: Layout, momentum: float, weight_decay: float) -> Optimizer:
    return _momentum(layout, momentum, weight_decay) if momentum else optimizers.sgd(weight_decay=weight_decay)


def _momentum(layout: Layout, momentum: float, weight_decay: float) -> Optimizer:
    return optimizers.momentum(mu=momentum, weight_decay=weight_decay)


def _nesterov(layout: Layout, momentum: float, weight_decay: float) -> Optimizer:
    return optimizers.nesterov(mu=momentum, weight_decay=weight_decay)


def _adam(layout: Layout, weight_decay: float) -> Optimizer:
    return optimizers.adam(weight_decay=weight_decay)


def _adamw(layout: Layout, weight_decay: float) -> Optimizer:
    return optimizers.adamw(weight_decay=weight_decay)


def _lamb(layout: Layout, weight_decay: float) -> Optimizer:
    return optimizers.lamb(layout, weight_decay=weight_decay)


def _wants_whole_arrays(options: Any, axes: Any) -> str:
    if options.zero > 0:
        return f"--optimizer lamb needs norms of whole arrays, but --zero {options.zero} splits them"
    return "--optimizer lamb needs norms of whole arrays, but tp splits them" if axes is not None and axes.tp > 1 else ""


OPTIMIZERS = {
    "sgd": Entry("gradient descent", _sgd, {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}),
    "momentum": Entry("heavy ball", _momentum, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.0}, source="Polyak 1964"),
    "nesterov": Entry(
        "Nesterov's momentum", _nesterov, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.0}, source="Nesterov 1983"
    ),
    "adam": Entry("adaptive moments", _adam, {"lr": 1e-3, "weight_decay": 0.0}, source="arXiv:1412.6980"),
    "adamw": Entry("Adam with decoupled weight decay", _adamw, {"lr": 1e-3, "weight_decay": 0.01}, source="arXiv:1711.05101"),
    "lamb": Entry(
        "AdamW with a learning rate for each array",
        _lamb,
        {"lr": 5e-3, "weight_decay": 0.01},
        _wants_whole_arrays,
        source="arXiv:1904.00962",
    ),
}
"""Optimizer name -> entry. An entry's `options` are the arguments of `make` and lr, the default learning rate."""
