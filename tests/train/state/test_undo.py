"""What a step changes before it is decided, and how that is taken back."""

import numpy as np

from hpcai.strategies.strategy import Kept
from hpcai.train.state.undo import Undo


def kept(memory, count):
    """A memory that a step changes, parameters that it does not, and a counter."""

    def put(counter):
        count[0] = counter

    return [
        Kept("params", "all", np.zeros(2)),
        Kept("memory", "own", memory, early=True),
        Kept("reducer.0", "counter", counter=count[0], put=put, early=True),
    ]


def test_a_step_that_is_repeated_begins_with_what_it_began_with():
    undo, memory, count = Undo(), np.arange(3.0), [7]
    for step in (4, 5):
        undo.remember(step, kept(memory, count))
        before = memory.copy()
        memory += 1
        count[0] += 1
        undo.take_back(step, kept(memory, count))
        assert memory.tolist() == before.tolist()
        assert count == [7]
        memory += 1


def test_another_step_is_left_as_it_is():
    undo, memory, count = Undo(), np.arange(3.0), [7]
    undo.remember(4, kept(memory, count))
    memory += 1
    undo.take_back(5, kept(memory, count))
    Undo().take_back(4, kept(memory, count))
    assert memory.tolist() == [1.0, 2.0, 3.0]


def test_the_copies_are_used_again():
    undo, memory, count = Undo(), np.arange(3.0), [7]
    undo.remember(1, kept(memory, count))
    first = undo._before[0][0]
    undo.remember(2, kept(memory + 1, count))
    assert undo._before[0][0] is first
    assert first.tolist() == [1.0, 2.0, 3.0]
    undo.remember(3, kept(np.zeros(5), count))
    assert undo._before[0][0].shape == (5,)
