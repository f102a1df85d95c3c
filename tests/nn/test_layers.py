"""Backward equals finite differences in f64, for every layer and loss."""

import numpy as np
import pytest

from hpcai.nn import layers, losses

LAYERS = {
    "linear": (layers.linear("l", 6, 4), (3, 6)),
    "relu": (layers.relu(), (3, 5)),
    "gelu": (layers.gelu(), (3, 5)),
    "flatten": (layers.flatten((2, 3)), (4, 2, 3)),
    "reshape": (layers.reshape("r", (3, 2)), (4, 6)),
    "channels_last": (layers.channels_last("c", (3, 2, 4)), (5, 24)),
    "conv2d 3x3": (layers.conv2d("c", 2, 3), (2, 5, 4, 2)),
    "conv2d 5x5 without padding": (layers.conv2d("c", 1, 2, 5, 0), (2, 6, 7, 1)),
    "max_pool": (layers.max_pool(), (2, 4, 5, 3)),
    "max_pool 3": (layers.max_pool(size=3), (2, 7, 6, 2)),
}


def random_params(layer, seed):
    rng = np.random.default_rng(seed)
    return {key: rng.normal(size=p.shape) for key, p in layer.parameters.items()}


def backward(layer, params, grads, cache, dy):
    dy = dy.copy()
    if layer.parameters:
        layer.gradients(params, grads, cache, dy)
    return layer.backward(params, cache, dy)


@pytest.mark.parametrize("name", LAYERS)
def test_backward_equals_finite_differences(name):
    layer, shape = LAYERS[name]
    rng = np.random.default_rng(0)
    x = rng.permutation(np.prod(shape)).reshape(shape) / 7 - 2.03  # no ties, nothing at a kink
    params, cache = random_params(layer, 1), {}
    weights = rng.normal(size=layer.forward(params, {}, x).shape)

    def objective():
        return float((layer.forward(params, {}, x) * weights).sum())

    layer.forward(params, cache, x)
    grads = {key: np.full_like(p, np.nan) for key, p in params.items()}
    dx = backward(layer, params, grads, cache, weights)
    for array, gradient in [(x, dx), *((params[key], grads[key]) for key in params)]:
        numeric = np.empty_like(array)
        for at in np.ndindex(*array.shape):
            kept = array[at]
            array[at] = kept + 1e-5
            high = objective()
            array[at] = kept - 1e-5
            numeric[at] = (high - objective()) / 2e-5
            array[at] = kept
        np.testing.assert_allclose(gradient, numeric, atol=1e-7)


@pytest.mark.parametrize("name", LAYERS)
def test_smaller_batches_reuse_the_cache_without_trace(name):
    layer, shape = LAYERS[name]
    rng = np.random.default_rng(2)
    params, cache = random_params(layer, 1), {}
    for b in (shape[0], 1, shape[0] + 2, 0, shape[0]):
        x = rng.normal(size=(b, *shape[1:]))
        y, fresh = layer.forward(params, cache, x), layer.forward(params, {}, x)
        np.testing.assert_array_equal(y, fresh)
        grads = [{key: np.full_like(p, np.nan) for key, p in params.items()} for _ in range(2)]
        dy = rng.normal(size=y.shape)
        dx = backward(layer, params, grads[0], cache, dy)
        other = {}
        layer.forward(params, other, x)
        np.testing.assert_array_equal(dx, backward(layer, params, grads[1], other, dy))
        for key in params:
            np.testing.assert_array_equal(grads[0][key], grads[1][key])
            assert np.isfinite(grads[0][key]).all()


@pytest.mark.parametrize(
    "loss, target",
    [
        (losses.softmax_cross_entropy(), np.array([0, 4, 2])),
        (losses.softmax_cross_entropy([0.5, 1, 0, 1, 3]), np.array([0, 4, 2])),
        (losses.mean_squared_error(), np.arange(15.0).reshape(3, 5)),
    ],
)
def test_losses_equal_finite_differences(loss, target):
    y = np.random.default_rng(0).normal(size=(3, 5))
    dy, scratch = np.empty_like(y), np.empty_like(y)
    loss.evaluate(dy, y, target, 0.5)
    for at in np.ndindex(*y.shape):
        kept = y[at]
        y[at] = kept + 1e-6
        high = loss.evaluate(scratch, y, target, 1.0)[0]
        y[at] = kept - 1e-6
        low = loss.evaluate(scratch, y, target, 1.0)[0]
        y[at] = kept
        assert dy[at] == pytest.approx(0.5 * (high - low) / 2e-6, rel=1e-6, abs=1e-8)
