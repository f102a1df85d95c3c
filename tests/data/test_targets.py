import json

import numpy as np
import pytest

from hpcai.data.targets import MOST_CLASSES, targets
from hpcai.errors import DataError

BIG = 2**53

CLASSES = {
    "two": ([0, 1, 1, 0], [1], [0, 1]),
    "as floats": ([3.0, 5.0, 3.0], [5.0], [3, 5]),
    "booleans": (np.array([True, False, True]), np.array([False]), [0, 1]),
    "twenty": (np.arange(20) * 3 - 7, [2], (np.arange(20) * 3 - 7).tolist()),
    "from 0 without a gap": (np.arange(100), [7], list(range(100))),
    "the most": (np.arange(MOST_CLASSES), [7], list(range(MOST_CLASSES))),
    "beyond 2^53": ([BIG, BIG + 1, BIG], [BIG + 1], [BIG, BIG + 1]),
    "beyond 2^53 below 0": ([-BIG - 1, -BIG, -BIG], [-BIG], [-BIG - 1, -BIG]),
    "u64 beside i64": (np.array([2**64 - 1, 2**64 - 2, 5], np.uint64), np.array([-1, 5]), [-1, 5, 2**64 - 2, 2**64 - 1]),
    "the first beyond i64": (np.array([2**63, 5], np.uint64), np.array([5], np.uint64), [5, 2**63]),
    "the first beyond i64 beside i64": (np.array([2**63, 5], np.uint64), np.array([5]), [5, 2**63]),
    "u64": (np.array([2**64 - 1, 2**64 - 2], np.uint64), np.array([2**64 - 1], np.uint64), [2**64 - 2, 2**64 - 1]),
    "small u64 beside i64": (np.array([7, 5], np.uint64), np.array([5]), [5, 7]),
    "i32 beside f64": (np.array([7, 5], np.int32), np.array([5.0]), [5, 7]),
    "f16": (np.array([60000, 65504], np.float16), np.array([65504], np.float16), [60000, 65504]),
}


@pytest.mark.parametrize("name", CLASSES)
def test_few_whole_numbers_are_classes_by_their_exact_value(name):
    train, test, values = CLASSES[name]
    train = np.tile(train, 2)  # each comes twice
    found = targets(train, np.asarray(test))
    assert found.encoding == {"kind": "classes", "values": values}
    assert found.classes == len(values)
    assert [values[i] for i in found.train] == train.tolist()
    assert [values[i] for i in found.test] == np.asarray(test).tolist()
    assert found.train.dtype == np.int64
    assert found.said.startswith(f"classification with {len(values):,} classes")
    json.dumps(found.encoding)


QUANTITIES = {
    "ages": np.tile(np.arange(18, 90), 9),
    "counted from 1": np.tile(np.arange(1, 30), 9),
    "each once": np.arange(10),
    "not from 0": np.tile(np.r_[-5, 1:25], 9),
    "a gap": np.tile(np.delete(np.arange(50), 30), 9),
    "too many": np.tile(np.arange(MOST_CLASSES + 1), 3),
    "fractions": np.array([0.5, 1, 1.5]),
    "f16": np.array([60000, 65504, 0.5], np.float16),
    "huge": np.array([1e300, -1e300, 0.5]),
    "tiny": np.array([1e-320, 2e-320, 0]),
    "u64": np.arange(30, dtype=np.uint64) * 2**59,
}


@pytest.mark.parametrize("name", QUANTITIES)
def test_other_numbers_are_a_quantity_in_units_of_the_training_deviation(name):
    values = QUANTITIES[name]
    found = targets(values, values[:2])
    assert found.classes == 0
    assert found.train.shape == (len(values), 1)
    exact = values.astype(np.longdouble)
    deviation = np.sqrt(((exact - exact.mean()) ** 2).mean())
    np.testing.assert_allclose(found.train[:, 0], ((exact - exact.mean()) / deviation).astype(float), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found.test, found.train[:2])
    assert found.unit == pytest.approx(float(deviation), rel=1e-3 if name == "tiny" else 1e-12)
    assert found.said.startswith("regression")
    assert ("--task classification" in found.said) == (values.dtype.kind in "iu" and name != "u64")
    assert json.loads(json.dumps(found.encoding))["kind"] == "number"


def test_the_task_may_be_given():
    ages = np.arange(18, 90)
    found = targets(ages, ages[:3], "classification")
    assert found.classes == len(ages)
    assert "--task" not in found.said
    assert targets(np.array([0.5, 1.5]), np.array([0.5]), "classification").encoding["values"] == [0.5, 1.5]
    assert targets(np.array([0, 1]), np.array([1]), "regression").classes == 0
    assert "--task regression" in targets(np.arange(6), np.arange(6)).said


@pytest.mark.parametrize(
    "train, test, task, words",
    [
        (np.arange(200_000), [0], "classification", "200,000 different values, too many"),
        (BIG + np.arange(3), [BIG], "regression", f"label {BIG + 1} is beyond what f64 holds.*--task classification"),
        (BIG + np.arange(3), [0.5], None, f"label {BIG + 1} is beyond"),
        (BIG + 3 * np.arange(30), [BIG], None, f"label {BIG + 3} is beyond"),
        (np.array([2**64 - 1, 5] * 30, np.uint64), np.arange(-30, 0), None, f"label {2**64 - 1} is beyond"),
        (np.array(["1e4000", "0.5"], np.longdouble), [1], None, "label inf is beyond"),
        (np.array([1.5, 2, 4]), [1e300], None, "label 1e.300 of a row for testing is too far"),
        (np.array([1e-320, 2e-320, 0]), [-1e300], None, "label -1e.300 of a row for testing is too far"),
    ],
)
def test_what_is_neither_is_refused(train, test, task, words):
    with pytest.raises(DataError, match=words):
        targets(np.asarray(train), np.asarray(test), task)


def test_what_cannot_be_learnt_is_warned_of():
    assert "only rows for testing have 7" in targets(np.array([1, 2, 1, 2, 1]), np.array([7])).warnings[0]
    alone = targets(np.full(5, 3), np.full(2, 3))
    assert alone.classes == 2
    assert "all rows for training have the label 3: there is nothing to learn" in alone.warnings[0]
    constant = targets(np.full(5, 0.1), np.array([0.1, 0.35]))
    assert "nothing to learn" in constant.warnings[0]
    np.testing.assert_allclose(constant.test[:, 0], [0, 0.25])
    assert constant.unit == 1
