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
