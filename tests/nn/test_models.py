import numpy as np
import pytest

from hpcai import arena, nn
from hpcai.errors import UsageError
from hpcai.nn import models

LOSS = models.default_loss(3)
MODELS = {
    "softmax": models.softmax((4, 4), 3, LOSS),
    "mlp": models.mlp((4, 4), 3, LOSS, (8, 5)),
    "mlp gelu": models.mlp((4, 4), 3, LOSS, (8,), "gelu"),
    "cnn": models.cnn((5, 4), 3, LOSS, (2, 3), 6),
}


def evaluate(model, flat, x, labels):
    grads = np.zeros_like(flat)
    params, views, caches = models.per_layer(model, flat), models.per_layer(model, grads), [{} for _ in model.layers]
    y = models.forward(model, params, caches, x)
    dy = np.empty_like(y)
    loss, _ = model.loss.evaluate(dy, y, labels, 1.0)
    models.backward(model, params, views, caches, dy)
    return loss, grads


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_gradient_equals_finite_differences(name):
    model = MODELS[name]
    flat = models.initialise(model, 0, np.float64)
    x, labels = np.random.default_rng(1).normal(size=(6, *((5, 4) if name == "cnn" else (4, 4)))), np.arange(6) % 3
    _, grads = evaluate(model, flat, x, labels)
    for slot in model.layout.slots:
        for i in {slot.start, (slot.start + slot.stop) // 2, slot.stop - 1}:
            moved = flat.copy()
            moved[i] += 1e-6
            high = evaluate(model, moved, x, labels)[0]
            moved[i] -= 2e-6
            assert grads[i] == pytest.approx((high - evaluate(model, moved, x, labels)[0]) / 2e-6, abs=1e-6)


def test_initial_values_follow_the_seed_and_the_bound():
    model = MODELS["mlp"]
    a, b, c = (models.initialise(model, seed) for seed in (0, 0, 1))
    assert (a == b).all()
    assert (a != c).any()
    for name, view in arena.views(a, model.layout).items():
        fan_in = 16 if name.startswith("linear1") else 8 if name.startswith("linear2") else 5
        assert 0.3 / np.sqrt(fan_in) < np.abs(view).max() <= 1 / np.sqrt(fan_in)


def test_the_first_layer_that_breaks_is_named():
    model = MODELS["mlp"]
    flat = models.initialise(model, 0)
    params, caches = models.per_layer(model, flat), [{} for _ in model.layers]
    x = np.ones((2, 4, 4), np.float32)
    assert models.first_non_finite(model, params, caches, x) is None
    params[3]["weight"][0, 0] = np.nan
    assert models.first_non_finite(model, params, caches, x) == "layer linear2 (its weight)"
    params[1]["weight"][:] = 3e38
    assert models.first_non_finite(model, params, caches, x) == "layer linear1 (its output)"
    assert models.first_non_finite(model, params, caches, x * np.inf) == "the input data"


def test_channels_first_are_the_same_images():
    last, first = models.cnn((6, 5, 3), 3, LOSS, (2,), 4), models.cnn((3, 6, 5), 3, LOSS, (2,), 4, image_channels="first")
    assert last.layout == first.layout
    flat = models.initialise(last, 0, np.float64)
    x, labels = np.random.default_rng(1).normal(size=(4, 6, 5, 3)), np.arange(4) % 3
    loss, grads = evaluate(last, flat, x, labels)
    for turned in (x.transpose(0, 3, 1, 2), np.ascontiguousarray(x.transpose(0, 3, 1, 2)).reshape(4, -1)):
        found, same = evaluate(first, flat, turned, labels)
        assert found == loss
        assert (same == grads).all()


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (4, 8, 5)])
def test_channels_that_seem_to_come_first_are_to_be_said(shape):
    with pytest.raises(UsageError, match=r"look like \(channels, height, width\); use --image-channels first"):
        models.cnn(shape, 3, LOSS, (2,))
    assert models.cnn(shape, 3, LOSS, (2,), image_channels="first").layers[0].name == "image"


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (28, 28), (32, 32, 12), (4, 8, 3)])
def test_channels_are_last_else(shape):
    for said in (None, "last"):
        conv = models.cnn(shape, 3, LOSS, (2,), image_channels=said).layers[1]
        assert conv.parameters["weight"].shape == (9 * (shape[2:] or (1,))[0], 2)
    assert models.cnn((28, 28), 3, LOSS, (2,), image_channels="first").layers[1].parameters["weight"].shape == (9, 2)
    assert models.cnn((3, 8, 8), 3, LOSS, (1,), image_channels="last").layers[1].parameters["weight"].shape == (72, 1)


def test_cnn_refuses_data_that_is_no_image():
    with pytest.raises(UsageError, match="cnn wants images"):
        models.cnn((14,), 2, LOSS)
    with pytest.raises(UsageError, match="at least 4 pixels"):
        models.cnn((3, 8), 2, LOSS)


def test_layers_without_parameters_may_have_one_name_and_others_not():
    parts = nn.linear("a", 3, 8), nn.relu(), nn.linear("b", 8, 8), nn.relu(), nn.relu("relu-2"), nn.linear("c", 8, 1)
    model = nn.sequential("m", *parts, loss=nn.mean_squared_error())
    assert [layer.name for layer in model.layers] == ["a", "relu", "b", "relu-2", "relu-2-2", "c"]
    with pytest.raises(UsageError, match="two layers are called 'a'; give them different names"):
        nn.sequential("m", nn.linear("a", 3, 8), nn.linear("a", 8, 1), loss=nn.mean_squared_error())
    with pytest.raises(UsageError, match="a part of the model is str; expected a layer"):
        nn.sequential("m", "relu", loss=nn.mean_squared_error())
