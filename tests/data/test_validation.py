"""What is held out for validation: a function of the seed, alike of each class, and nothing measured on it."""

import numpy as np
import pytest

from hpcai.data import from_arrays, from_samples, sources
from hpcai.data.contents import changed, contents
from hpcai.data.dataset import take
from hpcai.data.validation import Validation, held_out, split
from hpcai.errors import DataError

TENTH = Validation(0.1, 0)


class Numbers:
    """The numbers below n, of two classes."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def take(self, index):
        return index[:, None].astype("f4"), index % 2


@pytest.mark.parametrize("n, fraction", [(10, 0.1), (3, 0.5), (1000, 0.333), (2, 0.5)])
@pytest.mark.parametrize("classes", [None, 1, 2, 3])
def test_every_sample_is_in_one_part_and_the_seed_decides(n, fraction, classes):
    labels = None if classes is None else np.arange(n) % classes
    train, held = held_out(n, Validation(fraction, 3), labels)
    assert sorted([*train, *held]) == list(range(n))
    assert len(held) == round(n * fraction)
    again = held_out(n, Validation(fraction, 3), labels)
    assert [part.tolist() for part in again] == [train.tolist(), held.tolist()]
    assert n < 100 or held_out(n, Validation(fraction, 4), labels)[1].tolist() != held.tolist()


def test_classes_share_it_as_sklearn_has_them():
    model_selection = pytest.importorskip("sklearn.model_selection")
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.choice(5, 200, p=[0.5, 0.3, 0.1, 0.07, 0.03])
        labels[:10] = np.arange(10) % 5
        _, held = held_out(200, Validation(0.25, 1), labels)
        theirs = model_selection.train_test_split(np.arange(200), test_size=0.25, stratify=labels, random_state=0)[1]
        ours, wanted = (np.bincount(labels[index], minlength=5) for index in (held, theirs))
        assert np.abs(ours - wanted).max() <= 1
        assert ours.sum() == wanted.sum()


def test_a_class_keeps_a_sample_for_training():
    labels = np.array([0] * 18 + [1, 2])
    train, held = held_out(20, Validation(0.5, 0), labels)
    assert set(labels[train]) == {0, 1, 2}
    assert len(held) == 10


@pytest.mark.parametrize("n, fraction", [(4, 0.1), (2, 0.9), (1, 0.5)])
def test_a_part_without_samples_is_refused(n, fraction):
    with pytest.raises(DataError, match=rf"--validation {fraction} of {n} training sample.* is [0-9]; wanted is one at least"):
        held_out(n, Validation(fraction, 0))


def test_nothing_of_a_table_is_measured_on_it(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(500, 2))
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "".join(f"{a:.6f},{y:.6f}\n" for a, y in values))
    whole = sources.load(f"csv:{path}", label="y", task="regression")
    data = sources.load(f"csv:{path}", label="y", task="regression", validation=TENTH)
    assert (len(data.x_train), len(data.x_validation), len(data.x_test)) == (360, 40, 100)
    for array in (data.x_train, data.y_train):  # deviations from their own mean
        assert abs(float(array.mean())) < 1e-6
        assert float(array.std()) == pytest.approx(1, abs=1e-5)
    assert abs(float(data.x_validation.mean())) > 1e-4
    assert len(whole.x_test) == len(data.x_test)
    assert data.encoding["label"]["mean"] != whole.encoding["label"]["mean"]


def test_nor_of_arrays():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 3)), rng.normal(10, 2, 200)
    data = from_arrays(x, y, validation=TENTH)
    assert data.x_validation.shape == (16, 3)
    assert data.y_validation.shape[0] == 16
    assert float(data.y_train.mean()) == pytest.approx(0, abs=1e-6)
    rows = {row.tobytes() for part in (data.x_train, data.x_test, data.x_validation) for row in np.asarray(part)}
    assert rows == {row.tobytes() for row in x.astype("f4")}


def test_images_and_texts_and_objects_have_a_part_too(tmp_path):
    digits = sources.load("digits", validation=TENTH)
    assert (len(digits.x_train), len(digits.x_validation)) == (1294, 144)
    shares = np.bincount(digits.y_validation) / np.bincount(sources.digits().y_train)
    assert np.abs(shares - 0.1).max() < 0.01
    content = bytes(range(1, 251)) * 40
    (tmp_path / "t.txt").write_bytes(content)
    text = sources.load(f"text:{tmp_path / 't.txt'}", context=16, validation=TENTH)
    assert bytes(text.x_train) + bytes(text.x_validation) + bytes(text.x_test) == content
    assert text.validating.test_samples == (900 - 1) // 16

    data = split(from_samples(Numbers(50), Numbers(7), classes=2), TENTH)
    seen = [
        take(one, np.arange(count), np.empty(0), train=train)[0].ravel().tolist()
        for one, count, train in ((data, 45, True), (data.validating, 5, False))
    ]
    assert sorted([*seen[0], *seen[1]]) == list(range(50))
    assert data.validates
    assert data.test_samples == 7


def test_a_text_too_short_for_it_is_refused(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"abcdefghij" * 30)
    with pytest.raises(DataError, match="--context 16 wants 32 and 17 at least"):
        sources.load(f"text:{tmp_path / 't.txt'}", context=16, validation=Validation(0.01, 0))


def test_many_classes_of_one_sample_do_not_make_the_part_smaller():
    labels = np.concatenate([np.zeros(150, int), np.arange(1, 91)])
    train, held = held_out(240, Validation(0.4, 0), labels)
    assert len(held) == 96
    assert len(set(labels[train])) == 91


def test_arrays_may_bring_their_own():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), rng.normal(10, 2, 50)
    theirs = rng.normal(size=(7, 3)), rng.normal(90, 2, 7)
    data = from_arrays(x, y, validation=theirs)
    alone = from_arrays(x, y)
    np.testing.assert_array_equal(data.x_validation, theirs[0].astype("f4"))
    for name in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(data, name), getattr(alone, name))
    assert data.encoding == alone.encoding, "nothing is measured on them"
    label = data.encoding["label"]
    found = np.ldexp(data.y_validation[:, 0] * label["deviation"] + label["mean"], label.get("exponent", 0))
    np.testing.assert_allclose(found, theirs[1])
    named = from_arrays(x, np.array(["a", "b"] * 25), validation=(theirs[0], np.array(["b"] * 7)))
    assert named.y_validation.tolist() == [1] * 7


@pytest.mark.parametrize(
    "theirs, said",
    [
        ((np.zeros((7, 2)), np.zeros(7)), r"x_train has rows of shape \(3,\), x_validation of \(2,\)"),
        ((np.zeros((7, 3)), np.zeros(6)), r"x_validation of shape \(7, 3\) and y_validation of shape \(6,\) do not belong"),
        ((np.zeros((7, 3), "u1"), np.zeros(7)), "x_validation uint8"),
        ((np.zeros((7, 3)), np.array(["a"] * 7)), "y_validation is <U1"),
        ((np.full((7, 3), np.nan), np.zeros(7)), "x_validation has nan"),
        ((np.zeros((7, 3)),), r"validation wants a pair \(x, y\)"),
        (0.2, r"validation wants a pair \(x, y\)"),
    ],
)
def test_what_does_not_fit_the_other_arrays_is_refused(theirs, said):
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match=said):
        from_arrays(rng.normal(size=(50, 3)), rng.normal(size=50), validation=theirs)


def test_objects_may_bring_their_own_too():
    data = from_samples(Numbers(50), Numbers(7), classes=2, validation=Numbers(9))
    assert (data.train_samples, data.test_samples, data.validating.test_samples) == (50, 7, 9)
    others = from_samples(Numbers(50), Numbers(7), classes=2, validation=Numbers(8))
    assert changed(contents(data), contents(others))


def test_a_checkpoint_knows_the_rows_that_are_held_out():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 3)), np.arange(100) % 2
    data = from_arrays(x, y, validation=TENTH)
    touched = data._replace(x_validation=data.x_validation + 1)
    assert changed(contents(data), contents(touched)) == "other validation inputs"
