"""What samples are taken from, and what is refused there."""

import numpy as np
import pytest

from hpcai.data import dataset
from hpcai.data.dataset import Dataset, batch_into, take, windows
from tests.guarded import assert_door

X = np.arange(40, dtype=np.uint8).reshape(10, 4)
Y = np.arange(10) % 3
TABLE = Dataset("table", X, Y, X[:2], Y[:2], shape=(2, 2), classes=3, scale=0.5, shift=1.0)
TEXT = Dataset(
    "text", np.arange(50, dtype=np.uint8), Y[:0], np.arange(50, dtype=np.uint8), Y[:0], shape=(4,), classes=256, context=4
)
INDEX = np.array([0, 9, 3])


def test_a_batch_is_the_rows_that_the_index_says():
    rows = np.empty((5, 4), np.float32)
    x, y = take(TABLE, INDEX, rows)
    np.testing.assert_array_equal(x, (X[INDEX] * 0.5 + 1).reshape(3, 2, 2))
    np.testing.assert_array_equal(y, Y[INDEX])


def test_bools_are_rows_of_0_and_1():
    rows = np.array([[True, False], [False, True]])
    out = batch_into(np.empty((2, 2), np.float32), rows, np.array([1, 0]), TABLE._replace(shape=(2,), scale=1.0, shift=0.0))
    np.testing.assert_array_equal(out, [[0, 1], [1, 0]])


def test_batch_into_refuses_what_does_not_fit():
    def call(out, rows, index):
        batch_into(out, rows, index, TABLE)

    right = {
        ("rows", "first dim long"),
        ("rows", "NaN"),
        ("out", "first dim long"),
        ("out", "other dtype"),
        ("index", "first dim short"),
    }
    arrays = {"out": np.empty((3, 4), np.float32), "rows": X, "index": INDEX}
    assert_door(call, arrays, writes=["out"], limits={"index": 10}, right=right | {("index", "empty")})


def test_take_refuses_an_index_beyond_the_data_and_labels_that_are_too_few():
    rows = np.empty((3, 4), np.float32)
    for index in (INDEX + 1, INDEX - 1, INDEX.astype(float), INDEX.astype(np.int32)):
        with pytest.raises((TypeError, ValueError), match="index"):
            take(TABLE, index, rows)
    with pytest.raises(ValueError, match="a label for each row, got 9 for 10"):
        take(TABLE._replace(y_train=Y[:9]), INDEX, rows)


def test_windows_refuse_what_is_outside_the_text():
    content, index = TEXT.x_train, np.array([0, 11, 3])
    right = {("content", "first dim long"), ("index", "first dim short"), ("index", "first dim long"), ("index", "empty")}
    assert_door(
        lambda content, index: windows(content, index, 4),
        {"content": content[:49], "index": index},
        limits={"index": 12},
        right=right,
    )
    for index, context, phase in (([12], 4, 2), ([0], 0, 0), ([0], -1, 0), ([0], 4, -1), ([0], 60, 0), ([2**62], 4, 0)):
        with pytest.raises(ValueError, match="windows wants"):
            windows(content, np.array(index), context, phase)
    for train in (True, False):
        with pytest.raises(ValueError, match="windows wants every index from 0 to below 12, got 12"):
            take(TEXT, np.array([12]), np.empty((0, 4)), train, 1)


def test_what_a_predictor_that_ignores_its_input_scores():
    none, x = np.zeros(0, np.int64), np.zeros((4, 1), np.float32)
    text = dataset.Dataset(
        "t", np.frombuffer(b"aabbb", np.uint8), none, np.frombuffer(b"abbb", np.uint8), none, (2,), 256, context=2
    )
    assert dataset.constant_score(text) == 0.75
    classes = dataset.Dataset("c", x, np.array([1, 1, 0, 2]), x, np.array([1, 0, 0, 0]), (1,), 3)
    assert dataset.constant_score(classes) == 0.25
    numbers = dataset.Dataset("r", x, np.array([[0.0], [1], [2], [3]]), x[:2], np.array([[1.5], [3.5]]), (1,), 0)
    assert dataset.constant_score(numbers) == 2.0
