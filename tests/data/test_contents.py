import numpy as np
import pytest

from hpcai.data.contents import changed, contents
from hpcai.data.sources import digits

DIGITS = digits()


def other(name, change):
    array = getattr(DIGITS, name).copy()
    change(array)
    return DIGITS._replace(**{name: array})


def one_more(place):
    def change(array):
        array.flat[place] += 1

    return change


@pytest.mark.parametrize(
    "dataset, words",
    [
        (DIGITS._replace(name="elsewhere", warnings=("so",)), ""),
        (other("x_train", one_more(0)), "other training inputs"),
        (other("x_test", one_more(-1)), "other test inputs"),
        (other("y_train", one_more(7)), "other training targets"),
        (other("y_test", one_more(-1)), "other test targets"),
        (DIGITS._replace(x_train=DIGITS.x_train.view(np.int8)), "other training inputs"),
        (DIGITS._replace(shift=0.0), "other training inputs and other test inputs"),
        (DIGITS._replace(target_unit=2.0), "other training targets and other test targets"),
        (DIGITS._replace(x_train=DIGITS.x_train.astype(np.float32)), "other training inputs"),
        (
            DIGITS._replace(x_train=DIGITS.x_train[1:], y_train=DIGITS.y_train[1:]),
            "1,438 training samples (now 1,437)",
        ),
        (DIGITS._replace(shape=(64,)), "8 x 8 values a sample (now 64)"),
        (DIGITS._replace(classes=11), "10 classes (now 11)"),
        (DIGITS._replace(encoding={"label": {"values": [1.0, 2.0]}}), ""),
        (DIGITS._replace(encoding={"label": {"values": ["a", "b"]}}), "other names of classes"),
    ],
)
def test_what_is_another_is_named(dataset, words):
    assert changed(contents(DIGITS), contents(dataset)) == words


def test_names_of_classes_that_were_there_are_missed():
    named = DIGITS._replace(encoding={"label": {"values": ["a", "b"]}})
    assert changed(contents(named), contents(DIGITS)) == "other names of classes"


def test_of_a_text_the_window_is_no_content():
    text, none = np.arange(200, dtype=np.uint8), np.zeros(0, np.int64)
    data = DIGITS._replace(x_train=text, y_train=none, x_test=text, y_test=none, shape=(8,), classes=256, context=8)
    assert changed(contents(data), contents(data._replace(shape=(4,), context=4))) == ""
    assert changed(contents(data), contents(data._replace(x_test=text[1:]))) == "200 test bytes (now 199)"


def test_what_a_manifest_makes_up_is_another():
    assert changed({}, contents(DIGITS)).startswith("no training samples (now 1,438)")
    assert changed({**contents(DIGITS), "values a sample": "?", "classes": None}, contents(DIGITS)) == (
        "no classes (now 10), no values a sample (now 8 x 8)"
    )
