"""Layers: values that describe their parameters and compute forward and backward.

A layer keeps no arrays. Parameters and gradients are views into arenas. Forward leaves arrays for backward in a `cache`, a dict
that the caller owns and clears. Images are (batch, height, width, channels).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import prod, sqrt
from typing import Any, NamedTuple, TypeVar

import numpy as np

from hpcai import ops
from hpcai.nn import memory
from hpcai.ops.door import ARRAYS, described
from hpcai.xp import Array, namespace

Cache = dict[str, Any]
Params = dict[str, Array]
Compute = TypeVar("Compute", bound=Callable[..., Any])


class Parameter(NamedTuple):
    """The shape and initial values of a parameter.

    initial: "uniform" within +-scale, "normal" with standard deviation `scale`, "constant": all are `scale`, or "given":
    `values`. If ranks split a parameter, this is `part` of an array of shape `whole`, reshaped to `shape`.
    """

    shape: tuple[int, ...]
    scale: float
    initial: str = "uniform"
    whole: tuple[int, ...] | None = None
    part: tuple[slice, ...] = ()
    values: Array | None = None


class Layer(NamedTuple):
    """One layer of a model: its parameters, forward and backward.

    forward(params, cache, x) -> y. gradients(params, grads, cache, dy) writes the gradients of the parameters into `grads`; it
    is None for a layer without parameters. backward(params, cache, dy) -> dx computes the gradient of the input. `gradients`
    may be called before backward, so that gradients are sent meanwhile, or after; neither changes dy. `shares_cache_with` and
    `shares_parameters_with` name another layer, whose cache or parameters this layer uses.
    """

    name: str
    parameters: dict[str, Parameter]
    forward: Callable[[Params, Cache, Array], Array]
    backward: Callable[[Params, Cache, Array], Array]
    gradients: Callable[[Params, Params, Cache, Array], None] | None = None
    shares_cache_with: str | None = None
    shares_parameters_with: str | None = None


def linear(name: str, inputs: int, outputs: int) -> Layer:
    """y = x W + b. x: (b, inputs), W: (inputs, outputs); initial W and b uniform in +-1/sqrt(inputs)."""
    bound = 1 / sqrt(inputs)
    return product(name, Parameter((inputs, outputs), bound), Parameter((outputs,), bound))


def product(name: str, weight: Parameter, bias: Parameter, adds_bias: bool = True, transposed: bool = False) -> Layer:
    """y = x W + b. x: (b, inputs), W: (inputs, outputs).

    adds_bias: if ranks split the inputs and sum their products, only one rank adds b. transposed: the parameter is W^T; then
    its gradient is computed faster if there are more outputs than inputs. See also product_gelu.
    """
    outputs = bias.shape[0]

    @dims(2)
    def forward(params: Params, cache: Cache, x: Array) -> Array:
        y = ops.matmul_into(buffer((len(x), outputs), x), x, _turned(params["weight"], transposed))
        cache["x"] = x
        return ops.add_bias_into(y, params["bias"]) if adds_bias else y

    @dims(2)
    def gradients(params: Params, grads: Params, cache: Cache, dy: Array) -> None:
        _weight_gradient_into(grads["weight"], cache["x"], dy, transposed)
        ops.column_sums_into(grads["bias"], dy)

    @dims(2)
    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        return ops.matmul_into(buffer(cache["x"].shape, dy), dy, _turned(params["weight"], not transposed))

    return Layer(name, {"weight": weight, "bias": bias}, forward, backward, gradients)


def _turned(weight: Array, transposed: bool) -> Array:
    return weight.T if transposed else weight


def _weight_gradient_into(out: Array, x: Array, dy: Array, transposed: bool) -> None:
    if transposed:
        ops.matmul_into(out, dy.T, x)
    else:
        ops.matmul_into(out, x.T, dy)


def product_gelu(name: str, weight: Parameter, bias: Parameter, transposed: bool = False) -> Layer:
    """y = gelu(x W + b), as `product` then `gelu`. One pass over y computes bias, GELU and GELU's derivative, which the cache
    keeps for backward.
    """
    outputs = bias.shape[0]

    @dims(2)
    def forward(params: Params, cache: Cache, x: Array) -> Array:
        y = ops.matmul_into(buffer((len(x), outputs), x), x, _turned(params["weight"], transposed))
        cache["x"], cache["slope"] = x, buffer(y.shape, y)
        return ops.bias_gelu_into(y, cache["slope"], params["bias"])

    def before_gelu(cache: Cache, dy: Array) -> Array:
        """Return the gradient of x W + b. The first call computes it, in place of the slope, and the bias's gradient."""
        if "slope" in cache:
            cache["dbias"] = buffer((outputs,), dy)
            cache["dz"] = ops.multiply_and_sum_into(cache.pop("slope"), dy, cache["dbias"])
        return cache["dz"]

    @dims(2)
    def gradients(params: Params, grads: Params, cache: Cache, dy: Array) -> None:
        _weight_gradient_into(grads["weight"], cache["x"], before_gelu(cache, dy), transposed)
        grads["bias"][...] = cache["dbias"]

    @dims(2)
    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        dz = before_gelu(cache, dy)
        return ops.matmul_into(buffer(cache["x"].shape, dy), dz, _turned(params["weight"], not transposed))

    return Layer(name, {"weight": weight, "bias": bias}, forward, backward, gradients)


def relu(name: str = "relu") -> Layer:
    """y = max(x, 0)."""

    @dims(0)
    def forward(params: Params, cache: Cache, x: Array) -> Array:
        cache["y"] = ops.relu_into(buffer(x.shape, x), x)
        return cache["y"]

    @dims(0)
    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        return ops.relu_backward_into(buffer(dy.shape, dy), dy, cache["y"])

    return Layer(name, {}, forward, backward)


def gelu(name: str = "gelu") -> Layer:
    """y = x Phi(x), exact. Source: Hendrycks & Gimpel, arXiv:1606.08415."""

    @dims(0)
    def forward(params: Params, cache: Cache, x: Array) -> Array:
        cache["x"] = x
        return ops.gelu_into(buffer(x.shape, x), x)

    @dims(0)
    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        return ops.gelu_backward_into(buffer(dy.shape, dy), dy, cache["x"])

    return Layer(name, {}, forward, backward)


def reshape(name: str, shape: tuple[int, ...]) -> Layer:
    """(b, ...) becomes (b, *shape); a view."""

    def forward(params: Params, cache: Cache, x: Array) -> Array:
        cache["shape"] = x.shape
        return x.reshape(len(x), *shape)

    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        return dy.reshape(cache["shape"])

    return Layer(name, {}, forward, backward)


def channels_last(name: str, shape: tuple[int, int, int]) -> Layer:
    """(b, ...) images of `shape` (channels, height, width) become (b, height, width, channels)."""

    def forward(params: Params, cache: Cache, x: Array) -> Array:
        cache["shape"] = x.shape
        return namespace(x).ascontiguousarray(x.reshape(len(x), *shape).transpose(0, 2, 3, 1))

    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        return namespace(dy).ascontiguousarray(dy.transpose(0, 3, 1, 2)).reshape(cache["shape"])

    return Layer(name, {}, forward, backward)


def flatten(shape: tuple[int, ...]) -> Layer:
    """(b, *shape) becomes (b, k), k the product of `shape`; a view."""
    return reshape("flatten", (prod(shape),))


def conv2d(name: str, inputs: int, outputs: int, kernel: int = 3, pad: int | None = None) -> Layer:
    """Cross-correlation with stride 1: x (b, h, w, inputs) to (b, h', w', outputs), h' = h + 2 pad - kernel + 1.

    pad: zeros on each side; None: as many as keep h' = h, for an odd kernel. Receptive fields become rows (im2col), so that
    forward and backward are matrix products. W: (kernel * kernel * inputs, outputs), initialised as in `linear`.
    """
    pad = kernel // 2 if pad is None else pad
    fan_in = kernel * kernel * inputs
    bound = 1 / sqrt(fan_in)

    @dims(4)
    def forward(params: Params, cache: Cache, x: Array) -> Array:
        b, h, w = x.shape[0], x.shape[1] + 2 * pad - kernel + 1, x.shape[2] + 2 * pad - kernel + 1
        cols = cache["cols"] = ops.im2col_into(buffer((b * h * w, fan_in), x), x, kernel, pad)
        y = ops.matmul_into(buffer((b * h * w, outputs), x), cols, params["weight"])
        cache["input"] = x.shape
        return ops.add_bias_into(y, params["bias"]).reshape(b, h, w, outputs)

    @dims(4)
    def gradients(params: Params, grads: Params, cache: Cache, dy: Array) -> None:
        rows = dy.reshape(-1, outputs)
        ops.matmul_into(grads["weight"], cache["cols"].T, rows)
        ops.column_sums_into(grads["bias"], rows)

    @dims(4)
    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        rows = dy.reshape(-1, outputs)
        dcols = ops.matmul_into(buffer(cache["cols"].shape, dy), rows, params["weight"].T)
        return ops.col2im_into(buffer(cache["input"], dy), dcols, kernel, pad)

    shapes = {"weight": Parameter((fan_in, outputs), bound), "bias": Parameter((outputs,), bound)}
    return Layer(name, shapes, forward, backward, gradients)


def max_pool(name: str = "max_pool", size: int = 2) -> Layer:
    """Maximum over tiles of size x size: (b, h, w, c) to (b, h // size, w // size, c). Rows and columns beyond are dropped."""

    @dims(4)
    def forward(params: Params, cache: Cache, x: Array) -> Array:
        b, h, w, c = x.shape
        cache["input"] = x.shape
        y = buffer((b, h // size, w // size, c), x)
        winner = cache["winner"] = buffer(y.shape, x, np.uint8)
        return ops.max_pool_into(y, winner, x, size)

    @dims(4)
    def backward(params: Params, cache: Cache, dy: Array) -> Array:
        winner = cache["winner"]
        return ops.max_pool_backward_into(buffer(cache["input"], dy), dy, winner, size)

    return Layer(name, {}, forward, backward)


def dims(count: int) -> Callable[[Compute], Compute]:
    """Declare the number of dims of a layer's array (0: at least one). Layers check only this; verbs check the rest."""

    def declared(compute: Compute) -> Compute:
        @wraps(compute)
        def entered(*args: Any) -> Any:
            x = args[-1]
            if type(x) not in ARRAYS or (x.ndim != count if count else x.ndim == 0):
                raise TypeError(f"a layer wants an array of {count or 'one or more'} dims, got {described(x)}")
            return compute(*args)

        return entered  # type: ignore[return-value]

    return declared


def buffer(shape: tuple[int, ...], like: Array, dtype: Any = None) -> Array:
    """Return an uninitialised array for a result; dtype: None means that of `like`. See memory.py."""
    dtype = like.dtype if dtype is None else dtype
    return memory.empty(shape, dtype) if namespace(like) is np else namespace(like).empty(shape, dtype)
