"""Layers of sequence models, and the gpt made of them."""

import numpy as np
import pytest

from hpcai.errors import UsageError
from hpcai.nn import gpt, losses, memory, models, sequence
from hpcai.nn.layers import Parameter, product

TINY = gpt.Shape(layers=2, width=8, heads=2, context=6, tokens=11)
X = np.random.default_rng(0).integers(0, 11, (3, 6))
TARGET = np.random.default_rng(1).integers(0, 11, (3, 6))


def evaluate(model, flat, moment=None):
    grads = np.full_like(flat, np.nan)
    params, views, caches = models.per_layer(model, flat), models.per_layer(model, grads), models.caches(model)
    y = models.forward(model, params, caches, X, moment=moment)
    dy = np.empty_like(y)
    loss, _ = model.loss.evaluate(dy, y, TARGET, 1.0)
    models.backward(model, params, views, caches, dy)
    return loss, grads


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("moment", [None, sequence.BatchPosition(3, 5)])
def test_the_whole_gradient_equals_finite_differences(kind, moment):
    model = gpt.gpt(TINY._replace(norm=kind, dropout=0.3))
    flat = models.initialise(model, 0, np.float64) * 5
    loss, grads = evaluate(model, flat, moment)
    assert (loss != evaluate(model, flat, None)[0]) == (moment is not None)
    for slot in model.layout.slots:
        for i in {slot.start, (slot.start + slot.stop) // 2, slot.stop - 1}:
            moved = flat.copy()
            moved[i] += 1e-5
            high = evaluate(model, moved, moment)[0]
            moved[i] -= 2e-5
            assert grads[i] == pytest.approx((high - evaluate(model, moved, moment)[0]) / 2e-5, rel=1e-6, abs=2e-6), slot.name


def test_residual_adds_its_input_and_its_gradient():
    inner = product("inner", Parameter((3, 3), 0.1), Parameter((3,), 0.1))
    model = models.sequential("r", *sequence.residual("r", inner), loss=losses.mean_squared_error())
    flat = models.initialise(model, 0, np.float64)
    params, caches = models.per_layer(model, flat), models.caches(model)
    x, dy = np.random.default_rng(0).normal(size=(2, 4, 3))
    y = models.forward(model, params, caches, x)
    np.testing.assert_allclose(y, x + x @ params[1]["weight"] + params[1]["bias"])
    dx = models.backward(model, params, models.per_layer(model, np.zeros_like(flat)), caches, dy, need_input_grad=True)
    np.testing.assert_allclose(dx, dy + dy @ params[1]["weight"].T)


def test_gradients_put_off_are_the_same():
    model = gpt.gpt(TINY)
    flat = models.initialise(model, 0, np.float64)
    _, wanted = evaluate(model, flat)
    grads = np.full_like(flat, np.nan)
    params, views, caches = models.per_layer(model, flat), models.per_layer(model, grads), models.caches(model)
    y = models.forward(model, params, caches, X)
    dy = np.empty_like(y)
    model.loss.evaluate(dy, y, TARGET, 1.0)
    deferred = []
    models.backward(model, params, views, caches, dy, deferred=deferred)
    assert np.isnan(grads).all()
    models.gradients(model, params, views, caches, deferred)
    np.testing.assert_array_equal(grads, wanted)


def test_a_tied_model_has_one_matrix_and_parts_of_it_agree():
    tied, untied = gpt.gpt(TINY._replace(tied=True)), gpt.gpt(TINY)
    names = [slot.name for slot in tied.layout.slots]
    assert "head.token" not in names
    assert [slot.name for slot in untied.layout.slots] == [*names, "head.token"]
    last = models.parts(tied, [slice(len(tied.layers) - 3, len(tied.layers))])
    assert models.borrowed(last, tied) == "head.token"
    both = [models.per_layer(model, models.initialise(model, 3))[i]["token"] for model, i in ((tied, 0), (last, 2))]
    np.testing.assert_array_equal(*both)


def test_a_later_byte_changes_no_earlier_score():
    model = gpt.gpt(TINY)
    params = models.per_layer(model, models.initialise(model, 0, np.float64) * 5)
    other = X.copy()
    other[:, 4] = (other[:, 4] + 1) % 11
    a, b = (models.forward(model, params, models.caches(model), x).reshape(3, 6, 11) for x in (X, other))
    np.testing.assert_array_equal(a[:, :4], b[:, :4])
    assert (a[:, 4:] != b[:, 4:]).any()


@pytest.mark.parametrize(
    "change, parts, words",
    [
        ({"heads": 3}, 1, "--width 8 is not divisible by --heads 3; near divisors are 1, 2, 4"),
        ({"heads": 2}, 4, "--heads 2 is not divisible by tp=4"),
        ({"heads": 4, "context": 6}, 4, "--context 6 is not divisible by tp=4"),
        ({"tokens": 11}, 2, "the vocabulary of 11 is not divisible by tp=2"),
        ({"layers": 0}, 1, "--layers must be at least 1"),
        ({"dropout": 1.0}, 1, "--dropout must be from 0 to below 1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(change, parts, words):
    with pytest.raises(UsageError) as caught:
        gpt.check(TINY._replace(**change), parts)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_memory_is_used_again_only_when_nobody_refers_to_it():
    first = memory.empty((100, 100), np.float32)
    kept = first[3:, ::2].T
    place = first.ctypes.data
    del first
    assert memory.empty((100, 100), np.float32).ctypes.data != place
    del kept
    assert place in {array.ctypes.data for array in [memory.empty((100, 100), np.float32) for _ in range(3)]}


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 0), (4096, 3), (7, 11, 200)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_memory_has_the_shape_and_dtype_that_was_asked_for(shape, dtype):
    array = memory.empty(shape, dtype)
    array[...] = 1
    assert (array.shape, array.dtype, array.flags.c_contiguous, array.flags.writeable) == (shape, dtype, True, True)


def test_dropout_of_a_part_of_a_batch_is_that_part_of_the_whole():
    """Five samples of six rows of four: from sample 2 on, and the second half of the rows on another tensor-parallel rank."""
    x = np.random.default_rng(0).normal(size=(30, 4))

    def dropped(rows, first, split=sequence.WHOLE, step=3):
        cache = {"moment": sequence.BatchPosition(step, first)}
        return sequence.dropout("drop", 0.5, 1, 2, 6, 4, split).forward({}, cache, rows)

    whole = dropped(x, 10)
    assert 30 < np.count_nonzero(whole) < 90
    np.testing.assert_array_equal(dropped(x[12:], 12), whole[12:])
    np.testing.assert_array_equal(dropped(x[15:], 10, sequence.WHOLE._replace(place=1, parts=2)), whole[15:])
    assert (dropped(x, 11) != whole).any()
    assert (dropped(x, 10, step=4) != whole).any()
