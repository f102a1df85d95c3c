"""Each fused verb equals its reference."""

import numpy as np
import pytest

from hpcai.ops import fused, reference

F = [np.float32, np.float64]


def close(a, b, dtype, scale=1.0):
    np.testing.assert_allclose(a, b, rtol=0, atol=scale * (1e-6 if dtype == np.float32 else 1e-12))


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("rows", [np.uint8, np.float32])
def test_gather(dtype, rows):
    table = rng().integers(0, 255, (10, 7)).astype(rows)
    index = np.array([3, 3, 0, 9])
    out = [v.gather_into(np.empty((4, 7), dtype), table, index, 2 / 255, -1) for v in (fused, reference)]
    close(*out, dtype)


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("verb", ["relu_into", "gelu_into"])
def test_activations(dtype, verb):
    x = np.concatenate([rng().normal(0, 3, 101), [0, -0.0, 30, -30]]).astype(dtype).reshape(5, 21)
    close(getattr(fused, verb)(np.empty_like(x), x), getattr(reference, verb)(np.empty_like(x), x), dtype, 10)


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("verb", ["relu_backward_into", "gelu_backward_into"])
def test_activations_backward(dtype, verb):
    x, dy = rng().normal(0, 2, (2, 5, 21)).astype(dtype)
    close(getattr(fused, verb)(np.empty_like(x), dy, x), getattr(reference, verb)(np.empty_like(x), dy, x), dtype, 10)


def test_relu_lets_nan_pass():
    assert np.isnan(fused.relu_into(np.empty(1), np.array([np.nan])))[0]


@pytest.mark.parametrize("dtype", F)
def test_add_bias(dtype):
    y, bias = rng().normal(size=(4, 3)).astype(dtype), rng(1).normal(size=3).astype(dtype)
    close(fused.add_bias_into(y.copy(), bias), reference.add_bias_into(y.copy(), bias), dtype)


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("b", [0, 1, 5])
def test_softmax_cross_entropy(dtype, b):
    logits = (rng().normal(size=(b, 10)) * 30).astype(dtype)
    labels = rng(1).integers(0, 10, b)
    if b:
        out = [(dx := np.empty_like(logits), *v.softmax_cross_entropy_into(dx, logits, labels, 0.25)) for v in (fused, reference)]
        close(out[0][0], out[1][0], dtype)
        assert out[0][1] == pytest.approx(out[1][1], rel=1e-6)
        assert out[0][2] == out[1][2]
    else:
        assert fused.softmax_cross_entropy_into(np.empty_like(logits), logits, labels, 1.0) == (0, 0)


@pytest.mark.parametrize("dtype", F)
def test_softmax_cross_entropy_survives_extremes(dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e30, -1e30, -1e30]], dtype)
    dx = np.empty_like(logits)
    loss, correct = fused.softmax_cross_entropy_into(dx, logits, np.array([0, 2]), 1.0)
    assert np.isfinite(dx).all()
    assert loss == pytest.approx(np.log(3))
    assert correct == 1


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("b", [0, 1, 7])
def test_weighted_softmax_cross_entropy(dtype, b):
    logits, labels = (rng().normal(size=(b, 4)) * 30).astype(dtype), rng(1).integers(0, 4, b)
    weights, plain = np.array([0.0, 0.5, 3.0, 1.0]), np.empty_like(logits)
    found = np.empty_like(logits)
    loss, correct = fused.weighted_softmax_cross_entropy_into(found, logits, labels, weights, 0.25)
    assert correct == fused.softmax_cross_entropy_into(plain, logits, labels, 0.25)[1]
    if b:
        wanted = np.empty_like(logits)
        assert loss == pytest.approx(reference.weighted_softmax_cross_entropy_into(wanted, logits, labels, weights, 0.25)[0])
        close(found, wanted, dtype)
    same = fused.weighted_softmax_cross_entropy_into(found, logits, labels, np.ones(4), 0.25)
    assert same == fused.softmax_cross_entropy_into(plain, logits, labels, 0.25)
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("dtype", F)
def test_mean_squared_error(dtype):
    y, target = rng().normal(size=(2, 6, 3))
    y = y.astype(dtype)
    out = [(dy := np.empty_like(y), *v.mean_squared_error_into(dy, y, target, 0.5)) for v in (fused, reference)]
    close(out[0][0], out[1][0], dtype)
    assert out[0][1] == pytest.approx(out[1][1])


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("kernel, pad", [(1, 0), (3, 1), (3, 0), (5, 2), (2, 1)])
def test_im2col_and_back(dtype, kernel, pad):
    x = rng().normal(size=(2, 6, 5, 3)).astype(dtype)
    shape = (2 * (6 + 2 * pad - kernel + 1) * (5 + 2 * pad - kernel + 1), kernel * kernel * 3)
    cols = [v.im2col_into(np.full(shape, np.nan, dtype), x, kernel, pad) for v in (fused, reference)]
    np.testing.assert_array_equal(*cols)
    cols = rng(1).normal(size=shape).astype(dtype)
    close(*[v.col2im_into(np.full_like(x, np.nan), cols, kernel, pad) for v in (fused, reference)], dtype, 10)


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("size", [2, 3])
def test_max_pool_and_back(dtype, size):
    x = rng().integers(0, 4, (2, 7, 6, 3)).astype(dtype)  # with ties
    shape = (2, 7 // size, 6 // size, 3)
    outs = []
    for v in (fused, reference):
        out, winner, dx = np.empty(shape, dtype), np.empty(shape, np.uint8), np.full_like(x, np.nan)
        v.max_pool_into(out, winner, x, size)
        v.max_pool_backward_into(dx, rng(1).normal(size=shape).astype(dtype), winner, size)
        outs.append((out, winner, dx))
    for a, b in zip(*outs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1001])
def test_sum_of_squares(dtype, n):
    x = rng().normal(size=n).astype(dtype)
    assert fused.sum_of_squares(x) == pytest.approx(reference.sum_of_squares(x), rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_sum_of_squares_shows_what_is_not_finite(bad):
    x = np.ones(1001, np.float32)
    x[500] = bad
    assert not np.isfinite(fused.sum_of_squares(x))


UPDATES = {
    "sgd_into": (2, (0.1, 0.5, 0.01)),
    "momentum_into": (3, (0.1, 0.9, 0.5, 0.01)),
    "nesterov_into": (3, (0.1, 0.9, 0.5, 0.01)),
    "adam_into": (4, (0.1, 0.9, 0.99, 1e-8, 0.1, 0.01, 0.5, 0.01, False)),
    "adam_into decoupled": (4, (0.1, 0.9, 0.99, 1e-8, 0.1, 0.01, 0.5, 0.01, True)),
    "lamb_direction_into": (5, (0.9, 0.99, 1e-6, 0.1, 0.01, 0.5, 0.01)),
    "lamb_step_into": (2, (0.3,)),
}


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("name", UPDATES)
def test_updates(name, dtype):
    count, scalars = UPDATES[name]
    outs = []
    for v in (fused, reference):
        arrays = [np.abs(a).astype(dtype) for a in rng().normal(size=(count, 101))]
        result = getattr(v, name.split()[0])(*arrays, *scalars)
        outs.append((arrays, result))
    for a, b in zip(outs[0][0], outs[1][0], strict=True):
        close(a, b, dtype, 10)
    if outs[1][1] is not None:
        assert outs[0][1] == pytest.approx(outs[1][1], rel=1e-5)
