"""Models: layers in a row and a loss, with parameters in one flat buffer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from hpcai import arena
from hpcai.errors import UsageError
from hpcai.nn import layers, losses
from hpcai.nn.layers import Cache, Layer, Params
from hpcai.nn.losses import Loss
from hpcai.xp import Array


class Model(NamedTuple):
    """Layers applied in order, a loss on top, and where each parameter lies in the flat buffer."""

    name: str
    layers: tuple[Layer, ...]
    loss: Loss
    layout: arena.Layout


def sequential(name: str, *parts: Layer, loss: Loss) -> Model:
    """A model of layers with distinct names. Parameters are called layer.parameter."""
    shapes = {f"{layer.name}.{key}": p.shape for layer in parts for key, p in layer.parameters.items()}
    return Model(name, parts, loss, arena.layout(shapes))


def softmax(inputs: tuple[int, ...], outputs: int, loss: Loss) -> Model:
    """Multinomial logistic regression: one linear layer."""
    return sequential("softmax", layers.flatten(inputs), layers.linear("linear1", prod(inputs), outputs), loss=loss)


def mlp(inputs: tuple[int, ...], outputs: int, loss: Loss, hidden: Sequence[int], activation: str = "relu") -> Model:
    """Linear layers of the `hidden` widths with an activation ("relu" or "gelu") after each, and a linear layer on top."""
    widths = [prod(inputs), *hidden]
    parts = [layers.flatten(inputs)]
    for i, (a, b) in enumerate(itertools.pairwise(widths), start=1):
        parts += [layers.linear(f"linear{i}", a, b), _activation(activation, i)]
    parts.append(layers.linear(f"linear{len(widths)}", widths[-1], outputs))
    return sequential("mlp", *parts, loss=loss)


def cnn(inputs: tuple[int, ...], outputs: int, loss: Loss, channels: Sequence[int] = (32, 64), width: int = 128) -> Model:
    """For each of `channels` a 3x3 convolution, ReLU and 2x2 maximum; then a hidden layer of `width` and a linear layer.

    inputs: (height, width) or (height, width, channels), at least 2**len(channels) pixels high and wide, else UsageError.
    """
    h, w, c = (*inputs, 1) if len(inputs) == 2 else inputs if len(inputs) == 3 else (0, 0, 0)
    if min(h, w) < 2 ** len(channels):
        raise UsageError(
            f"model cnn wants images of at least {2 ** len(channels)} pixels a side, this data has rows of shape {inputs}; "
            "use --model mlp"
        )
    parts = [layers.reshape("image", (h, w, c))]
    for i, k in enumerate(channels, start=1):
        parts += [layers.conv2d(f"conv{i}", c, k), layers.relu(f"relu{i}"), layers.max_pool(f"pool{i}")]
        h, w, c = h // 2, w // 2, k
    parts += [
        layers.flatten((h, w, c)),
        layers.linear("linear1", h * w * c, width),
        layers.relu("relu"),
        layers.linear("linear2", width, outputs),
    ]
    return sequential("cnn", *parts, loss=loss)


def _activation(kind: str, i: int) -> Layer:
    return layers.gelu(f"gelu{i}") if kind == "gelu" else layers.relu(f"relu{i}")


def initialise(model: Model, seed: int, dtype: Any = np.float32) -> Array:
    """Initial parameters, (layout.size,). A function of the seed and each parameter's place alone, equal on every rank."""
    flat = np.zeros(model.layout.size, dtype)
    views = arena.views(flat, model.layout)
    parameters = [p for layer in model.layers for p in layer.parameters.values()]
    for i, (view, parameter) in enumerate(zip(views.values(), parameters, strict=True)):
        rng = np.random.Generator(np.random.Philox(key=[seed, i]))
        view[...] = rng.uniform(-parameter.bound, parameter.bound, parameter.shape)
    return flat


def per_layer(model: Model, flat: Array) -> list[Params]:
    """For each layer the views of its parameters (or gradients) in `flat`, under their own names."""
    views = arena.views(flat, model.layout)
    return [{key: views[f"{layer.name}.{key}"] for key in layer.parameters} for layer in model.layers]


def forward(model: Model, params: list[Params], caches: list[Cache], x: Array) -> Array:
    """Predictions (b, outputs) for a batch x (b, ...). They live in the last cache until the next forward."""
    for layer, p, cache in zip(model.layers, params, caches, strict=True):
        x = layer.forward(p, cache, x)
    return x


def backward(
    model: Model,
    params: list[Params],
    grads: list[Params],
    caches: list[Cache],
    dy: Array,
    filled: Callable[[int], None] = lambda start: None,
) -> None:
    """Gradients of all parameters into `grads`, from the last layer to the first.

    `filled(start)` is called when all elements of the flat gradient from `start` on are there.
    """
    first = next((i for i, layer in enumerate(model.layers) if layer.parameters), 0)
    starts = {slot.name.split(".")[0]: slot.start for slot in reversed(model.layout.slots)}
    for i in range(len(model.layers) - 1, first - 1, -1):
        layer = model.layers[i]
        if layer.gradients is not None:
            layer.gradients(params[i], grads[i], caches[i], dy)
            filled(starts[layer.name])
        if i > first:
            dy = layer.backward(params[i], caches[i], dy)


def first_non_finite(model: Model, params: list[Params], caches: list[Cache], x: Array) -> str | None:
    """Which layer of a forward pass over `x` first gives NaN or infinity, and whether its parameters or its input did it."""
    with np.errstate(all="ignore"):
        if not np.isfinite(x).all():
            return "the input data"
        for layer, p, cache in zip(model.layers, params, caches, strict=True):
            broken = [key for key, value in p.items() if not np.isfinite(value).all()]
            if broken:
                return f"layer {layer.name} (its {' and '.join(broken)})"
            x = layer.forward(p, cache, x)
            if not np.isfinite(x).all():
                return f"layer {layer.name} (its output)"
        return None


def default_loss(classes: int) -> Loss:
    """Softmax cross-entropy for `classes` > 0, mean squared error for 0 (regression)."""
    return losses.softmax_cross_entropy() if classes else losses.mean_squared_error()
