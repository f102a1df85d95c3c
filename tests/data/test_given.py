"""Data sets from what a program has."""

import numpy as np
import pytest

from hpcai import data
from hpcai.data.dataset import constant_score, take
from hpcai.errors import DataError

X, Y = np.arange(60.0).reshape(20, 3), np.arange(20) % 2


def test_arrays_are_parted_once_or_as_they_are_given():
    parted, given = data.from_arrays(X, Y), data.from_arrays(X[:12], Y[:12], X[12:], Y[12:], name="points")
    assert (parted.train_samples, parted.test_samples, given.train_samples, given.test_samples) == (16, 4, 12, 8)
    assert given.name == "points"
    both = np.concatenate([parted.x_train, parted.x_test])
    assert sorted(both[:, 0].tolist()) == X[:, 0].tolist()
    np.testing.assert_array_equal(both[:, 0] / 3 % 2, np.concatenate([parted.y_train, parted.y_test]))


def test_lists_texts_and_images_do_too():
    found = data.from_arrays(np.zeros((20, 4, 4), np.uint8).tolist(), ["yes", "no"] * 10)
    assert found.shape == (4, 4)
    assert found.encoding["label"]["values"] == ["no", "yes"]


@pytest.mark.parametrize(
    "arrays, words",
    [
        ((X, Y, X), "y_test is given alone|y_test"),
        ((X[:3], Y[:3]), "x has 3 rows; wanted 10 at least"),
        ((X, Y[:9]), r"x of shape \(20, 3\) and y of shape \(9,\) do not belong together"),
        ((np.full((20, 3), np.nan), Y), "wanted finite numbers"),
        ((X, [None] * 20), "y is object; wanted numbers or texts"),
    ],
)
def test_arrays_that_are_no_data_are_refused(arrays, words):
    with pytest.raises(DataError, match=words):
        data.from_arrays(*arrays)


class Rows:
    def __init__(self, x=X, y=Y, length=20):
        self.x, self.y, self.length = x, y, length

    def __len__(self):
        return self.length

    def take(self, index):
        return self.x[index], self.y[index]


def test_objects_are_asked_for_what_a_step_wants():
    found = data.from_samples(Rows(), Rows(length=5), classes=2)
    assert (found.train_samples, found.test_samples, found.shape, found.outputs) == (20, 5, (3,), 2)
    x, target = take(found, np.array([7, 2]), np.empty((9, 3), np.float32))
    assert x.tolist() == X[[7, 2]].tolist()
    assert (x.dtype, target.tolist(), target.dtype) == (np.float32, [1, 0], np.int64)
    none, _ = take(found, np.array([], np.int64), np.empty((9, 3), np.float32), train=False)
    assert none.shape == (0, 3)
    assert constant_score(found) is None


@pytest.mark.parametrize(
    "train, words",
    [
        (7, "train is int; wanted is an object with __len__"),
        (Rows(length=0), "train has no samples"),
        (Rows(X[:, 0]), r"take gave x of shape \(1,\)"),
        (Rows(X.astype(object)), "take gave x of object"),
    ],
)
def test_objects_that_hand_out_none_are_refused(train, words):
    with pytest.raises(DataError, match=words):
        data.from_samples(train, Rows())


@pytest.mark.parametrize(
    "values, kind",
    [(["a", "b"] * 10, "U"), ([1, 2.5] * 10, "f"), ([True, False] * 10, "b"), ([3, 4] * 10, "f")],
)
def test_arrays_of_objects_are_what_stands_in_them(values, kind):
    plain = data.from_arrays(X, np.array(values))
    found = data.from_arrays(X, np.array(values, object))
    assert np.asarray(values).dtype.kind == kind or values[0] == 3
    np.testing.assert_array_equal(found.y_train, plain.y_train)
    assert found.encoding == plain.encoding


@pytest.mark.parametrize(
    "x, y, words",
    [
        (np.ma.masked_array(X, X > 50), Y, "x has masked values"),
        (X, np.ma.masked_array(Y, X[:, 0] > 50), "y has masked values"),
        ([[1, 2], [3]] * 10, Y, "x is list, not an array, nor rows of one length"),
        (X, np.array([None, 1] * 10, object), "y is object; wanted"),
        (X, np.array(["a", 1] * 10, object), "y is object; wanted"),
    ],
)
def test_arrays_that_have_no_value_in_each_place_are_refused(x, y, words):
    with pytest.raises(DataError, match=words):
        data.from_arrays(x, y)


def test_masks_that_hide_nothing_are_none():
    found = data.from_arrays(np.ma.masked_array(X, False), Y)
    np.testing.assert_array_equal(found.x_train, data.from_arrays(X, Y).x_train)
