import numpy as np
import pytest

from hpcai.data import scaling

N = 1000
TURN = np.arange(N)
COLUMNS = {
    "ordinary": np.random.default_rng(0).normal(9, 3, N),
    "huge": np.random.default_rng(1).normal(size=N) * 1e307,
    "the whole range": np.where(TURN % 2, 1.7e308, -1.7e308),
    "tiny": np.random.default_rng(2).normal(size=N) * 1e-310,
    "the smallest": 5e-324 * (TURN % 7),
    "one that is huge": np.where(TURN == 5, 1e300, TURN % 3),
    "nearly constant": 1e15 + TURN % 3,
    "two neighbours": np.where(TURN % 2, 1.0, np.nextafter(1, 2)),
    "rounds": 0.1 * (TURN % 2) + 0.1,
    "f16 at its end": np.where(TURN % 2, 65504, 60000).astype(np.float16),
    "whole": (TURN % 5).astype(np.int64),
    "negative": -np.random.default_rng(3).uniform(1e5, 2e5, N),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_any_size_and_spread_are_right_to_their_last_digits(name):
    """The oracle is numpy's long double, which has 11 bits more, and a far larger range."""
    column = COLUMNS[name]
    exact = column.astype(np.longdouble)
    mean = exact.mean()
    deviation = np.sqrt(((exact - mean) ** 2).mean())
    found = scaling.measure(column[:, None]).apply(column[:, None])[:, 0]
    digits = 1e-14 + np.spacing(np.abs(column.astype(np.float64)).max()) / float(deviation)  # a mean is known to its last bit
    assert np.abs(found - (exact - mean) / deviation).max() <= digits
    assert np.isfinite(found).all()
    if "neighbours" not in name:
        assert abs(found.std() - 1) < 1e-9


@pytest.mark.parametrize("value", [0, 0.1, 1 / 3, -1e300, 1e-320, 5e-324, 1.7e308, 2**53])
def test_a_column_of_one_value_becomes_zero_whatever_its_sum_rounds_to(value):
    scale = scaling.measure(np.full((N, 1), value))
    assert scale.deviation[0] == 0
    assert not scale.apply(np.full((3, 1), value)).any()
    assert not scale.apply(np.array([[1e300], [-5], [0.0]])).any()


def test_other_rows_are_measured_by_the_same_scale():
    scale = scaling.measure(np.array([[0.0, 1e-320, 1], [2, 3e-320, 1]]))
    z = scale.apply(np.array([[5, 2e-320, 7], [1e300, 1e300, 7], [-1e300, -1e300, 7]]))
    np.testing.assert_allclose(z[0], [4, 0, 0], atol=1e-3)
    assert z[1, 0] == 1e300
    assert z[1, 1] == np.inf
    assert z[2, 1] == -np.inf


def test_columns_do_not_disturb_each_other_and_are_described():
    both = np.stack([COLUMNS["ordinary"], COLUMNS["tiny"]], axis=1)
    scale = scaling.measure(both)
    assert scale.described(0) == {"mean": scale.mean[0], "deviation": scale.deviation[0]}
    assert scale.described(1)["exponent"] < -1000
    alone = scaling.measure(both[:, :1]).apply(both[:, :1])
    np.testing.assert_allclose(scale.apply(both)[:, :1], alone, rtol=1e-12)
