"""Models whose gradients another program computes: the same as layers that compute them."""

import numpy as np
import pytest

from hpcai import nn
from hpcai.errors import UsageError
from hpcai.nn import models
from hpcai.xp import bfloat16


def half_square(params, x, target):
    off = x @ params["w"] - target
    return (off**2).mean() / 2, {"w": x.T @ off / len(x)}


def evaluated(model, x, target, training=True, scale=1.0):
    """(loss, correct, gradients) of a pass over a batch."""
    flat = models.initialise(model, 0, np.float64)
    params, caches = models.per_layer(model, flat), models.caches(model)
    y = models.forward(model, params, caches, x, moment=models.BatchPosition(0, 0) if training else None)
    dy = np.empty_like(y)
    loss, correct = model.loss.evaluate(dy, y, target, scale)
    grads = models.per_layer(model, np.zeros_like(flat))
    if training:
        models.backward(model, params, grads, caches, dy)
    return loss, correct, grads[0]


X, TARGET, W = np.arange(12.0).reshape(4, 3), np.array([[1.0], [2], [0], [5]]), np.array([[0.1], [0.2], [-0.3]])


def test_losses_and_gradients_are_sums_over_samples_times_the_scale():
    model = nn.external({"w": W}, half_square)
    off = X @ W - TARGET
    loss, _, grads = evaluated(model, X, TARGET, scale=0.5)
    assert loss == pytest.approx((off**2).sum() / 2)
    np.testing.assert_allclose(grads["w"], 0.5 * X.T @ off)
    assert evaluated(model, X, TARGET, training=False)[0] == pytest.approx(loss)


def test_of_no_samples_nothing_is_asked():
    def never(*args):
        raise AssertionError

    model = nn.external({"w": W}, never, loss=never, predict=never)
    for training in (True, False):
        loss, correct, grads = evaluated(model, X[:0], TARGET[:0], training)
        assert (loss, correct, grads["w"].tolist()) == (0.0, 0, np.zeros((3, 1)).tolist())


def test_evaluation_asks_for_the_loss_alone_where_it_can():
    asked = []
    model = nn.external({"w": W}, half_square, loss=lambda *args: asked.append(args) or 2.0)
    assert evaluated(model, X, TARGET, training=False)[0] == 8.0
    assert len(asked) == 1


def test_predictions_are_counted_where_targets_are_classes():
    scores = np.array([[0.0, 1], [1, 0], [2, 3], [5, 4]])
    asked = nn.external({"w": W}, lambda p, x, t: (1.0, p), predict=lambda p, x: scores[: len(x)])
    assert asked.loss.counts
    assert evaluated(asked, X, np.array([1, 1, 1, 0]), training=False)[1] == 3
    assert evaluated(asked, X, TARGET, training=False)[1] == 0
    assert not nn.external({"w": W}, half_square).loss.counts


def given(gradients, loss=0.0, training=True):
    """What comes of a function that gives these."""
    return evaluated(nn.external({"w": W}, lambda *a: (loss, gradients)), X, TARGET, training=training)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, bfloat16])
def test_gradients_may_be_any_real_numbers(dtype):
    gradients = np.array([[1], [2], [-3]], dtype)
    _, _, grads = given({"w": gradients})
    np.testing.assert_array_equal(grads["w"], 4 * gradients.astype(np.float64))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: nn.external({}, half_square), "there are no parameters"),
        (lambda: nn.external({"w": np.zeros(3, int)}, half_square), "parameter 'w' has dtype int64"),
        (lambda: nn.external({"w": np.zeros((0, 3))}, half_square), r"'w' has dtype float64 and shape \(0, 3\)"),
        (lambda: nn.external({"w": W}, half_square, reduction="median"), "reduction is 'median'"),
        (lambda: evaluated(nn.external({"v": W}, lambda *a: (0.0, {"w": W})), X, TARGET), "no gradient of 'v'; it gave 'w'"),
        (lambda: evaluated(nn.external({"w": W}, lambda *a: (0.0, {"w": W.T})), X, TARGET), r"'w' has shape \(1, 3\); expected"),
        (lambda: nn.external([W], half_square), "parameters are a list; expected a mapping from names to arrays"),
        (lambda: given({"w": W * 1j}), "the gradient of 'w' has dtype complex128"),
        (lambda: given({"w": np.full((3, 1), "a")}), "the gradient of 'w' has dtype <U1"),
        (lambda: given({"w": W, "z": W}), "a gradient of 'z', which is not a parameter; parameters are 'w'"),
        (lambda: given([W]), r"gave \(float, list\); expected \(loss, gradients\)"),
        (lambda: evaluated(nn.external({"w": W}, lambda *a: {"w": W}), X, TARGET), "loss_and_gradients gave dict; expected"),
        (lambda: given({"w": W}, loss=None), "the loss of loss_and_gradients is NoneType; expected one number"),
        (lambda: given({"w": W}, loss=np.zeros(2)), r"is ndarray of shape \(2,\); expected one number"),
        (lambda: given({"w": W}, loss=None, training=False), "the loss of loss_and_gradients is NoneType"),
        (
            lambda: evaluated(nn.external({"w": W}, half_square, predict=lambda p, x: x[:2]), X, TARGET, training=False),
            r"predict gave shape \(2, 3\) for 4 samples",
        ),
    ],
)
def test_what_is_no_model_is_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_nothing_comes_before_it():
    model = nn.external({"w": W}, half_square)
    with pytest.raises(UsageError, match="computes no gradient of its input"):
        model.layers[0].backward({}, {}, X)


def test_parameters_of_any_name_begin_where_their_layer_does():
    model = nn.external({"0.weight": np.zeros((3, 2)), "2.bias": np.zeros(2)}, half_square)
    assert models.starts(model) == [0]
    assert [slot.name for slot in model.layout.slots] == ["external.0.weight", "external.2.bias"]
