"""What somebody trains of their own: a softmax regression as layers, and the same as a program that only gives loss and gradients."""

import numpy as np

from hpcai import data as sets
from hpcai import nn, optim


def points():
    """300 points of 5 numbers, and which of 3 directions is nearest."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)).astype(np.float32)
    return x, (x @ rng.normal(size=(5, 3))).argmax(1)


def model(data):
    return nn.softmax(data.shape, data.outputs, nn.softmax_cross_entropy())


class Rows:
    """Points that are handed out."""

    classes = 3

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def take(self, index):
        assert len(index)
        return self.x[index], self.y[index]


def rows():
    """The same points, parted as those in memory are."""
    x, y = points()
    train, test = sets.dataset.hold_out(len(x))
    return Rows(x[train], y[train]), Rows(x[test], y[test])


class Program:
    """Begins where `model` does with seed 0 in f64."""

    reduction = "mean"

    def __init__(self):
        built = nn.softmax((5,), 3, nn.softmax_cross_entropy())
        (_, first) = nn.models.per_layer(built, nn.models.initialise(built, 0, np.float64))
        self.parameters = {"a.weight": first["weight"], "bias": first["bias"]}

    def predict(self, params, x):
        return x @ params["a.weight"] + params["bias"]

    def loss_and_gradients(self, params, x, target):
        assert len(x)
        scores = self.predict(params, x)
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        places = np.arange(len(x)), target
        losses = -np.log(shares[places])
        shares[places] -= 1
        weight = len(x) if self.reduction == "mean" else 1
        return losses.sum() / weight, {"a.weight": x.T @ shares / weight, "bias": shares.sum(0) / weight}


class Summing(Program):
    reduction = "sum"


class Silent(Program):
    """Has no predictions, so nobody knows how many are right."""

    predict = None

    def loss_and_gradients(self, params, x, target):
        return Program.loss_and_gradients(Program(), params, x, target)


def optimizer():
    return optim.adam(beta1=0.8)


def signed():
    """An optimizer that hpcai has not: a step of the gradient's sign, smoothed."""

    def update(params, grads, state, step, lr, scale):
        state["smooth"] += 0.1 * (scale * grads - state["smooth"])
        params -= lr * np.sign(state["smooth"])

    return optim.Optimizer("signed", lambda params: {"smooth": np.zeros_like(params)}, update)


def wants_two(data, more):
    """Nobody gives the second."""


def wrong():
    return 7


def fails():
    return {}["absent"]


THREE = 3
