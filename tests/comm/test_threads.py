import pytest

from hpcai.comm import threads


def test_results_come_in_rank_order():
    assert threads.run(4, lambda comm, add: comm.rank + add, 10) == [10, 11, 12, 13]


def test_the_callers_error_comes_through():
    with pytest.raises(KeyError):
        threads.run(1, lambda comm: {}["missing"])
