"""Models: a sequence of layers and a loss, with parameters in one flat buffer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from hpcai import arena
from hpcai.errors import UsageError
from hpcai.nn import layers, losses
from hpcai.nn.layers import Cache, Layer, Parameter, Params
from hpcai.nn.losses import Loss
from hpcai.nn.sequence import BatchPosition
from hpcai.ops import streams
from hpcai.xp import Array

ALL = slice(None)

MOST_COLOURS = 4
"""An image with at most so many numbers in its first dim, and more in its last, probably has its channels first."""


class Gradients(Protocol):
    """The destination of a backward pass: for each layer its gradients by name, as in the result of `per_layer`."""

    def __getitem__(self, i: int, /) -> Params:
        """Return the arrays for layer i's gradients."""


class Model(NamedTuple):
    """Layers applied in order, a loss on top, and the position of each parameter in the flat buffer.

    numbers: for each parameter in the layout's order, its index in the whole model; this decides initial values.
    """

    name: str
    layers: tuple[Layer, ...]
    loss: Loss
    layout: arena.Layout
    numbers: tuple[int, ...]


def sequential(name: str, *parts: Layer, loss: Loss) -> Model:
    """Return a model of layers. Its parameters are called layer.parameter. Layers without parameters may share a name.

    Raises: UsageError for a part that is not a layer, and for two layers of the same name if one has parameters.
    """
    parts = _distinct(parts)
    shapes = {slot: p.shape for slot, p in _own(parts).items()}
    return Model(name, parts, loss, arena.layout(shapes), tuple(range(len(shapes))))


def _distinct(parts: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the layers; those of equal names get numbers."""
    found = dict[str, Layer]()
    for layer in parts:
        if not isinstance(layer, Layer):
            raise UsageError(f"a part of the model is {type(layer).__name__}; expected a layer, such as nn.linear(name, 2, 8)")
        if layer.name in found and (layer.parameters or found[layer.name].parameters):
            raise UsageError(
                f"two layers are called {layer.name!r}; give them different names: checkpoints store parameters by name"
            )
        number = 2
        name = layer.name
        while name in found:
            name, number = f"{layer.name}-{number}", number + 1
        found[name] = layer if name == layer.name else layer._replace(name=name)
    return tuple(found.values())


def _own(parts: Sequence[Layer]) -> dict[str, Parameter]:
    """Return the parameters that the layers own, by their names in the layout."""
    return {
        f"{layer.name}.{key}": p for layer in parts if layer.shares_parameters_with is None for key, p in layer.parameters.items()
    }


def parts(model: Model, spans: Sequence[slice]) -> Model:
    """Return the layers in these spans as a separate model.

    A layer that shares the parameters of a layer outside gets its own parameters, with the same initial values.
    """
    numbered = dict(zip(_own(model.layers), model.numbers, strict=True))
    names = {layer.name for span in spans for layer in model.layers[span]}
    kept, numbers = [], []
    for layer in (layer for span in spans for layer in model.layers[span]):
        owner = layer.shares_parameters_with or layer.name
        if layer.shares_parameters_with not in names:
            numbers += [numbered[f"{owner}.{key}"] for key in layer.parameters]
            layer = layer._replace(shares_parameters_with=None)
        kept.append(layer)
    return sequential(model.name, *kept, loss=model.loss)._replace(numbers=tuple(numbers))


def borrowed(model: Model, whole: Model) -> str | None:
    """Return the name of the parameter of `model`, a part of `whole`, that another part has too; None if there is none."""
    sharing = {layer.name for layer in whole.layers if layer.shares_parameters_with}
    found = (layer for layer in model.layers if layer.name in sharing and not layer.shares_parameters_with)
    return next((f"{layer.name}.{key}" for layer in found for key in layer.parameters), None)


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


def cnn(
    inputs: tuple[int, ...],
    outputs: int,
    loss: Loss,
    channels: Sequence[int] = (32, 64),
    width: int = 128,
    image_channels: Literal["last", "first"] | None = None,
) -> Model:
    """For each of `channels` a 3x3 convolution, ReLU and 2x2 maximum; then a hidden layer of `width` and a linear layer.

    inputs: (height, width) or (height, width, channels), or (channels, height, width) if image_channels="first". Raises:
    UsageError below 2**len(channels) pixels of height or width; if image_channels is None, also if channels seem to come first.
    """
    shape = (*inputs, 1) if len(inputs) == 2 else inputs if len(inputs) == 3 else (0, 0, 0)
    turned = image_channels == "first" and len(inputs) == 3
    if image_channels is None and shape[0] <= MOST_COLOURS < shape[2]:
        raise UsageError(
            f"model cnn: rows of shape {inputs} look like (channels, height, width); use --image-channels first, "
            f"or --image-channels last if images are {shape[0]} pixels high"
        )
    h, w, c = (*shape[1:], shape[0]) if turned else shape
    if min(h, w) < 2 ** len(channels):
        raise UsageError(
            f"model cnn wants images of at least {2 ** len(channels)} pixels a side, but rows of this data have shape {inputs}; "
            "use --model mlp"
        )
    parts = [layers.channels_last("image", (c, h, w)) if turned else layers.reshape("image", (h, w, c))]
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
    """Return the initial parameters, (layout.size,): a function of the seed and each parameter's number, equal on all ranks.

    A parameter is drawn whole, so that its values do not depend on how ranks split it.
    """
    flat = np.zeros(model.layout.size, dtype)
    views = arena.views(flat, model.layout)
    for view, parameter, number in zip(views.values(), _own(model.layers).values(), model.numbers, strict=True):
        view[...] = _drawn(parameter, streams.generator(seed, number))
    return flat


def _drawn(parameter: Parameter, rng: np.random.Generator) -> Array:
    whole = parameter.whole or parameter.shape
    if parameter.initial == "given":
        assert parameter.values is not None
        return parameter.values
    if parameter.initial == "constant":
        return np.full(parameter.shape, parameter.scale)
    if parameter.initial == "normal":
        values = parameter.scale * rng.standard_normal(whole)
    else:
        values = rng.uniform(-parameter.scale, parameter.scale, whole)
    return values[parameter.part].reshape(parameter.shape)


def parameters(model: Model) -> dict[str, Parameter]:
    """Return the description of each array of the layout, by name."""
    return _own(model.layers)


def per_layer(model: Model, flat: Array) -> list[Params]:
    """Return for each layer the views of its parameters (or gradients) in `flat`, by their names in the layer."""
    views = arena.views(flat, model.layout)
    return [
        {key: views[f"{layer.shares_parameters_with or layer.name}.{key}"] for key in layer.parameters} for layer in model.layers
    ]


def starts(model: Model) -> list[int]:
    """Return for each layer where its parameters begin in the flat buffer; the buffer's end for a layer that owns none."""
    found = {slot.name: slot.start for slot in model.layout.slots}
    firsts = (f"{layer.name}.{next(iter(layer.parameters), '')}" for layer in model.layers)
    return [found.get(name, model.layout.size) for name in firsts]


def caches(model: Model) -> list[Cache]:
    """Return an empty cache for each layer; layers that share a cache get the same one."""
    made: dict[str, Cache] = {}
    return [made.setdefault(layer.shares_cache_with or layer.name, {}) for layer in model.layers]


def forward(
    model: Model,
    params: Sequence[Params],
    caches: list[Cache],
    x: Array,
    span: slice = ALL,
    moment: BatchPosition | None = None,
) -> Array:
    """Return predictions (b, outputs) for a batch x (b, ...), or the output of the layers in `span` for input x.

    The caches get the arrays that backward needs. moment: in training, the position of the batch; None in evaluation.
    """
    for i in range(*span.indices(len(model.layers))):
        caches[i]["moment"] = moment
        x = model.layers[i].forward(params[i], caches[i], x)
    return x


def backward(
    model: Model,
    params: Sequence[Params],
    grads: Gradients,
    caches: list[Cache],
    dy: Array,
    filled: Callable[[int], None] = lambda layer: None,
    span: slice = ALL,
    *,
    need_input_grad: bool = False,
    deferred: list[tuple[int, Array]] | None = None,
) -> Array:
    """Write the gradients of all layers' parameters, or those in `span`, into `grads`, from the last layer to the first.

    filled(i) is called when layer i's gradients are written. need_input_grad: also compute and return the input's gradient.
    deferred: compute no gradients of parameters, but append each layer's index and dy to this list, for `gradients`. Without
    `deferred`, caches are emptied on the way.
    """
    indices = range(*span.indices(len(model.layers)))
    first = indices.start if need_input_grad else next((i for i in indices if model.layers[i].parameters), indices.start)
    for i in reversed(indices[first - indices.start :]):
        if model.layers[i].gradients is not None and deferred is not None:
            deferred.append((i, dy))
        elif model.layers[i].gradients is not None:
            gradients(model, params, grads, caches, [(i, dy)], filled)
        if i > first or need_input_grad:
            dy = model.layers[i].backward(params[i], caches[i], dy)
        if deferred is None and model.layers[i].shares_cache_with is None:
            caches[i].clear()
    return dy


def gradients(
    model: Model,
    params: Sequence[Params],
    grads: Gradients,
    caches: list[Cache],
    deferred: Sequence[tuple[int, Array]],
    filled: Callable[[int], None] = lambda layer: None,
) -> None:
    """Compute the gradients that a backward pass deferred."""
    for i, dy in deferred:
        compute = model.layers[i].gradients
        assert compute is not None
        compute(params[i], grads[i], caches[i], dy)
        filled(i)


def first_non_finite(model: Model, params: Sequence[Params], caches: list[Cache], x: Array) -> str | None:
    """Name the source of the first NaN or infinity in a forward pass over `x`: the input data, or a layer's parameters or output.
    Returns: None if all values are finite.
    """
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
    """Return softmax cross-entropy if `classes` > 0, mean squared error if 0 (regression)."""
    return losses.softmax_cross_entropy() if classes else losses.mean_squared_error()
