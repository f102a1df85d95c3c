import numpy as np
import pytest

from hpcai.data import arrays, dataset
from hpcai.errors import DataError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 2, 3))
Y = np.arange(12) % 3


def load(x_train=X, y_train=Y, x_test=X[:6], y_test=Y[:6], task=None):
    parts = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return arrays.dataset("here", {name: np.asarray(part) for name, part in parts.items()}, task)


def seen(data, rows):
    """What a model sees of these rows."""
    return dataset.batch_into(np.empty((len(rows), rows.shape[1])), rows, np.arange(len(rows)), data)


FORMS = {
    "f16": X.astype(np.float16),
    "f32": X.astype(np.float32),
    "f64": X,
    "long double": X.astype(np.longdouble),
    "big-endian": X.astype(">f8"),
    "i8": np.round(X * 10).astype(np.int8),
    "big-endian integers": np.round(X * 100).astype(">i4"),
    "u64": np.round(np.abs(X) * 100).astype(np.uint64),
    "booleans": X > 0,
    "columns first": np.asfortranarray(X),
    "every second": np.repeat(X, 2, axis=0)[::2],
    "backwards": X[::-1],
    "turned": X.transpose(0, 2, 1),
    "a number a row": X[:, 0, 0],
    "read-only": np.frombuffer(X.tobytes()).reshape(X.shape),
}


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_every_form_are_seen_as_they_are(form):
    x = FORMS[form]
    data = load(x_train=x, x_test=x[:6])
    assert data.shape == (x.shape[1:] or (1,))
    for rows, given in ((data.x_train, x), (data.x_test, x[:6])):
        assert rows.flags.c_contiguous
        assert rows.dtype.isnative
        np.testing.assert_array_equal(seen(data, rows), given.astype(np.float32).reshape(len(given), *data.shape))


def test_bytes_are_scaled():
    x = np.arange(256, dtype=np.uint8).reshape(128, 2)
    data = load(x_train=x, y_train=np.arange(128) % 2, x_test=x[:2], y_test=[0, 1])
    np.testing.assert_allclose(seen(data, data.x_train).ravel(), np.arange(256) / 127.5 - 1, atol=1e-6)


def test_numbers_of_different_kinds_in_training_and_test_are_of_one_scale():
    data = load(x_train=np.arange(12), x_test=np.arange(6.0))
    np.testing.assert_array_equal(data.x_train[:6], data.x_test)
    data = load(x_train=np.arange(12) > 5, x_test=np.arange(6.0))
    np.testing.assert_array_equal(seen(data, data.x_test).ravel(), np.arange(6))
    assert set(seen(data, data.x_train).ravel()) == {0, 1}
    assert data.x_train.dtype == np.uint8


LABELS = {
    "i64": Y,
    "u8": Y.astype(np.uint8),
    "f16": Y.astype(np.float16),
    "booleans": Y > 1,
    "big-endian": Y.astype(">i2"),
    "big-endian floats": Y.astype(">f4"),
    "a column": Y[:, None],
    "texts": np.array(["barolo", "grignolino", "barbera"])[Y],
    "bytes": np.array([b"barolo", "Grüner".encode(), b"barbera"])[Y],
    "backwards": Y[::-1],
}


@pytest.mark.parametrize("form", LABELS)
def test_labels_of_every_form_are_classes(form):
    y = LABELS[form]
    data = load(y_train=y, y_test=y[:6])
    values = data.encoding["label"]["values"]
    assert data.classes == len(values) == len(np.unique(y))
    plain = [value.decode() if isinstance(value, bytes) else value for value in y.ravel().tolist()]
    assert [values[i] for i in data.y_train] == plain
    assert [values[i] for i in data.y_test] == plain[:6]


def test_targets_in_16_bits_do_not_overflow():
    y = np.append(np.linspace(-60000, 65504, 11), 0.5).astype(np.float16)
    data = load(y_train=y, y_test=y[:6])
    assert data.classes == 0
    assert data.target_unit == pytest.approx(y.astype(float).std())
    np.testing.assert_allclose(data.y_train.std(), 1)


STRUCTURED = np.zeros(12, [("a", "f4"), ("b", "i4")])
REFUSED = {
    "test rows of another width": ({"x_test": X[:6, :, :2]}, r"x_train has rows of shape \(2, 3\), x_test of \(2, 2\)"),
    "test rows of another shape": ({"x_test": X[:6].reshape(6, 6)}, r"rows of shape \(2, 3\), x_test of \(6,\)"),
    "test rows turned": ({"x_test": X[:6].transpose(0, 2, 1)}, r"x_test of \(3, 2\)"),
    "bytes for training": ({"x_train": X.astype(np.uint8)}, "x_train is uint8, x_test float64"),
    "bytes for testing": ({"x_test": X[:6].astype(np.uint8)}, "x_train is float64, x_test uint8"),
    "bytes and booleans": ({"x_train": X.astype(np.uint8), "x_test": X[:6] > 0}, "x_train is uint8, x_test bool"),
    "fewer labels": ({"y_train": Y[:-1]}, r"x_train of shape \(12, 2, 3\) and y_train of shape \(11,\) do not belong"),
    "more test labels": ({"y_test": Y}, r"x_test of shape \(6, 2, 3\) and y_test of shape \(12,\)"),
    "one-hot": ({"y_train": np.eye(3)[Y]}, r"if rows are one-hot, give y_train.argmax\(1\)"),
    "a test row alone": ({"x_test": X[:1], "y_test": Y[:1]}, "x_test has 1 row; wanted 2 at least"),
    "a training row alone": ({"x_train": X[:1], "y_train": Y[:1]}, "x_train has 1 row; wanted 2 at least"),
    "no rows": ({"x_test": X[:0], "y_test": Y[:0]}, "x_test has 0 rows"),
    "no features": ({"x_train": X[:, :0], "x_test": X[:6, :0]}, r"x_train of shape \(12, 0, 3\) has no features"),
    "x is a number": ({"x_train": np.float64(1)}, r"x_train of shape \(\)"),
    "y is a number": ({"y_train": np.int64(1)}, r"y_train of shape \(\)"),
    "objects": ({"x_train": X.astype(object)}, "x_train is object; wanted numbers"),
    "objects as labels": ({"y_train": Y.astype(object)}, "y_train is object; wanted numbers or texts"),
    "structured": ({"x_train": STRUCTURED}, "x_train is .*; wanted numbers"),
    "complex": ({"x_test": X[:6] + 1j}, "x_test is complex128; wanted numbers"),
    "times": ({"x_train": Y.astype("M8[s]")}, r"x_train is datetime64\[s\]; wanted numbers"),
    "durations as labels": ({"y_train": Y.astype("m8[s]")}, r"y_train is timedelta64\[s\]"),
    "texts as features": ({"x_train": Y.astype(str)}, "x_train is <U21; wanted numbers"),
    "bf16 as npz keeps it": ({"x_train": X.astype(np.float16).view("V2")}, r"x_train is \|V2; wanted numbers"),
    "nan": ({"x_test": np.where(X > 2, X, np.nan)[:6]}, r"x_test has nan in row 0 \(from 0\)"),
    "infinity": ({"x_train": np.where(np.arange(12)[:, None, None] == 7, np.inf, X)}, "x_train has inf in row 7"),
    "nan as label": ({"y_train": np.where(Y == 2, np.nan, Y)}, "y_train has nan in row 2"),
    "f16 that overflowed": ({"x_train": np.full((12, 2, 3), np.inf, np.float16)}, "x_train has inf in row 0"),
    "beyond 32 bits": (
        {"x_test": np.where(np.arange(6)[:, None, None] == 4, 1e39, X[:6])},
        "x_test has 1e.39 in row 4.*32 bits",
    ),
    "other classes": ({"y_test": Y[:6] + 3}, "y_test has none of y_train's classes"),
    "texts and numbers": ({"y_test": Y[:6].astype(str)}, "y_train is int64, y_test <U21; texts are classes"),
    "texts as a quantity": ({"y_train": Y.astype(str), "y_test": Y[:6].astype(str), "task": "regression"}, "texts are classes"),
    "bytes that are no text": (
        {"y_train": np.array([b"\xff", b"a"])[Y % 2], "y_test": np.array([b"a", b"b"] * 3)},
        "a text that is not Unicode",
    ),
    "beyond Unicode": (
        {"y_train": np.array([65, 0x110000] * 6, np.uint32).view("<U1")[:12], "y_test": Y[:6].astype("U1")},
        "a text that is not Unicode",
    ),
    "half a character": (
        {"y_train": Y.astype("U1"), "y_test": np.array([65, 0xD800] * 3, ">u4").view(">U1")[:6]},
        "a text that is not Unicode",
    ),
    "fractions in the test alone": ({"y_test": Y[:6] + 0.5}, "quantity; give --task"),
    "many values in the test alone": ({"x_test": np.ones((60, 2, 3)), "y_test": np.arange(60) * 2}, "quantity; give --task"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_do_not_belong_together_are_named(case):
    given, words = REFUSED[case]
    with pytest.raises(DataError, match=words) as caught:
        load(**given)
    assert str(caught.value).startswith("here: ")
    assert "\n" not in str(caught.value)


def test_a_class_that_only_the_test_has_is_named():
    data = load(y_test=[0, 1, 2, 7, 8, 0])
    assert data.classes == 5
    assert "only rows for testing have 7, 8" in data.warnings[0]


def test_names_of_classes_are_printed_in_a_line():
    data = load(y_train=np.array(["a\n", "\x1b[31m", "c"])[Y], y_test=np.array(["a\n", "d\r", "c"])[Y[:6]])
    assert data.encoding["label"]["values"][1] == "a\n"
    assert all(line.isprintable() for line in (*data.notes, *data.warnings))


def test_said_to_be_a_quantity_it_is_one():
    assert load(y_test=Y[:6] + 0.5, task="regression").classes == 0


@pytest.mark.parametrize(
    "x", [1.7e9 + np.arange(12.0), np.arange(12) + 2**40, 1000 + 1e-6 * np.arange(12), np.arange(12) + 2**30]
)
def test_features_that_32_bits_do_not_tell_apart_are_named(x):
    data = load(x_train=np.stack([x, x - x[0]], 1), x_test=np.zeros((6, 2)))
    assert "in 1 of 2 features 32 bits round differences away" in data.warnings[0]
    for fine in (
        RNG.integers(0, 2**50, 12),
        np.full(12, 0.1),
        np.arange(12, dtype=np.int32) + 2**20,
        1000 + 1e-2 * np.arange(12),
    ):
        assert load(x_train=fine, x_test=np.zeros(6)).warnings == ()


def test_whole_numbers_for_training_and_others_for_testing_want_a_word():
    given = {"y_train": np.arange(12) % 3, "y_test": np.arange(6) / 2}
    with pytest.raises(DataError, match="y_train alone would be classes, but with y_test it is a quantity; give --task"):
        load(**given)
    assert load(**given, task="regression").classes == 0
