"""Reducers' states as trees: what of them is an array, what a counter, and that their kinds stay."""

from typing import Any, NamedTuple

import numpy as np

from hpcai.reduce import states
from hpcai.reduce.combine import Remembered, Scattered
from hpcai.reduce.policy import Parts


class Own(NamedTuple):
    """The state of somebody's own reducer."""

    count: int
    basis: Any


def tree(count, basis):
    inner = Scattered(Own(count, basis), (count + 1,), np.zeros(3))
    return Parts((0, 4), (Remembered(np.zeros(3), inner), (count + 2, None)))


def test_counters_come_back_in_tuples_of_their_own_kind():
    """A named tuple of another than the package's own came back as a plain one from a resume."""
    now, then = tree(0, np.zeros(2)), tree(10, np.ones(2))
    found = states.with_counters(now, states.counters(then))
    own = found.states[0].inner.first
    assert type(found) is Parts
    assert type(own) is Own
    assert own.count == 10
    assert own.basis is now.states[0].inner.first.basis
    assert found.states[0].inner.second == (11,)
    assert found.states[1] == (12, None)


def test_counters_of_another_kind_are_left_out():
    now = tree(0, np.zeros(2))
    for other in (None, 5, [], [1, 2, 3], [[1]], "x", [["a", "b"], ["c", 2]]):
        assert states.counters(states.with_counters(now, other)) == states.counters(now)


def test_arrays_that_ranks_share_are_all_but_memories():
    basis = np.ones(2)
    assert [array is basis for array in states.common(tree(0, basis))] == [True]
    assert [start for start, _ in states.remembered(tree(0, basis), 100)] == [100]
