"""What layers, losses and models do not take: found by introspection, so that a layer without a case here fails."""

import inspect

import numpy as np
import pytest

from hpcai.nn import layers, losses, sequence
from hpcai.nn.layers import Parameter
from hpcai.nn.sequence import BatchPosition
from tests.guarded import assert_door

ROWS, WIDTH, CONTEXT = 6, 4, 3
IMAGE = (2, 5, 4, 2)


def f(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tokens(*shape):
    return np.random.default_rng(0).integers(0, 9, shape)


LAYERS = {
    "linear": (layers.linear("l", WIDTH, 3), f(ROWS, WIDTH)),
    "product": (layers.product("p", Parameter((3, WIDTH), 1.0), Parameter((3,), 1.0), transposed=True), f(ROWS, WIDTH)),
    "product_gelu": (layers.product_gelu("p", Parameter((WIDTH, 3), 1.0), Parameter((3,), 1.0)), f(ROWS, WIDTH)),
    "relu": (layers.relu(), f(ROWS, WIDTH)),
    "gelu": (layers.gelu(), f(ROWS, WIDTH)),
    "conv2d": (layers.conv2d("c", 2, 3), f(*IMAGE)),
    "max_pool": (layers.max_pool(), f(*IMAGE)),
    "embedding": (sequence.embedding("e", 9, WIDTH, CONTEXT), tokens(2, CONTEXT)),
    "unembedding": (sequence.unembedding("u", 9, WIDTH), f(ROWS, WIDTH)),
    "norm": (sequence.norm("n", WIDTH), f(ROWS, WIDTH)),
    "norm rms": (sequence.norm("n", WIDTH, "rms"), f(ROWS, WIDTH)),
    "attention": (sequence.attention("a", 2, CONTEXT), f(ROWS, 3 * WIDTH)),
    "dropout": (sequence.dropout("d", 0.5, 0, 0, CONTEXT, WIDTH), f(ROWS, WIDTH)),
}
VIEWS = {"reshape", "flatten", "residual", "channels_last"}  # which compute nothing themselves
ANY_ROWS = {("x", f"first dim {what}") for what in ("short", "long")} | {("x", "empty")}
SHAPES = {f"{where} dim {what}" for where in ("first", *(f"{axis}." for axis in range(1, 4))) for what in ("short", "long")}
ANY_SHAPE = {("x", what) for what in (*SHAPES, "empty", "one dim more", "other dtype")}
A_PART = {(key, f"first dim {what}") for key in ("token", "position") for what in ("short", "long")}
"""A rank may have a part of a table, so that its length is no dim of anything else."""
RIGHT = {
    "relu": ANY_SHAPE,
    "gelu": ANY_SHAPE,
    "dropout": ANY_SHAPE - {("x", "one dim more")},
    "max_pool": {("x", what) for what in (*SHAPES, "empty", "other dtype")},
    "conv2d": ANY_ROWS - {("x", "empty")} | {("x", what) for what in SHAPES if not what.startswith("3.")},
    "attention": {("x", "other dtype")},
}


def prepared(name):
    layer, x = LAYERS[name]
    params = {key: f(*p.shape, seed=1) for key, p in layer.parameters.items()}
    return layer, x, params, {"moment": BatchPosition(0, 0)}


def test_every_layer_has_a_case():
    made = {
        name
        for module in (layers, sequence)
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and "Layer" in str(value.__annotations__.get("return"))
    }
    assert made - VIEWS == {name.split()[0] for name in LAYERS}


@pytest.mark.parametrize("name", LAYERS)
def test_forward(name):
    layer, x, params, cache = prepared(name)

    def forward(x, **params):
        layer.forward(params, dict(cache), x)

    right = RIGHT.get(name, ANY_ROWS - {("x", "empty")}) | strided(name, "x", *params)
    assert_door(
        forward,
        {"x": x, **params},
        limits={"x": 9} if name == "embedding" else {},
        right=right,
        skip=A_PART | {(key, what) for key in params for what in ("list", "0-d")},
        partly=True,
    )


@pytest.mark.parametrize("name", LAYERS)
def test_backward(name):
    layer, x, params, cache = prepared(name)
    y = layer.forward(params, cache, x.copy())
    grads = {key: np.zeros_like(value) for key, value in params.items()}

    def fresh():
        return {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in cache.items()}

    def backward(dy):
        layer.backward(params, fresh(), dy)

    def gradients(dy, **given):
        layer.gradients(params, {key: np.zeros_like(value) for key, value in grads.items()} | given, fresh(), dy)

    if name != "embedding":
        right = RIGHT[name] if name == "dropout" else {("x", "other dtype")} if name == "max_pool" else ()
        assert_door(backward, {"dy": y.copy()}, right={("dy", what) for _, what in right} | strided(name, "dy"))
    if layer.gradients is not None:
        right = {"unembedding": {("dy", "not contiguous")}, "product_gelu": {("weight", "overlaps dy")}}.get(name, set())
        skip = A_PART | {(key, f"overlaps {other}") for key in grads for other in grads} | {(key, "0-d") for key in grads}
        tried = {key: value for key, value in grads.items() if (name, key) != ("product_gelu", "bias")}  # which numpy copies
        assert_door(gradients, {"dy": y.copy(), **tried}, writes=list(tried), right=right, skip=skip, partly=True)


def strided(name, *arrays):
    """What need not be contiguous: operands of products."""
    names = {
        "linear": ("x", "weight", "dy"),
        "product": ("x", "weight", "dy"),
        "product_gelu": ("x", "weight"),
        "unembedding": ("x", "token", "dy"),
        "conv2d": ("weight", "dy"),
    }
    return {(key, "not contiguous") for key in arrays if key in names.get(name, ())}


LOSSES = {
    "softmax_cross_entropy": (losses.softmax_cross_entropy(), np.array([0, 3, 1]), 4),
    "softmax_cross_entropy with weights": (losses.softmax_cross_entropy([1, 0, 2, 0.5]), np.array([0, 3, 1]), 4),
    "mean_squared_error": (losses.mean_squared_error(), f(3, 4).astype(np.float64), None),
    "token_cross_entropy": (losses.token_cross_entropy(tokens=4), np.array([[0, 3, 1]]), 4),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    loss, target, limit = LOSSES[name]

    def evaluate(dy, y, target):
        loss.evaluate(dy, y, target, 0.5)

    right = {("target", "other dtype")} if limit is None else set()
    limits = {} if limit is None else {"target": limit}
    assert_door(evaluate, {"dy": f(3, 4), "y": f(3, 4), "target": target}, writes=["dy"], limits=limits, right=right)
