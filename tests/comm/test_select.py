"""The cost model: it recovers constants from times, chooses by them, and its cache survives what is not its own."""

import json

import numpy as np
import pytest

from hpcai.comm import select, threads
from hpcai.comm.select import Constants, Shape

SHAPE = Shape(nodes=4, per_node=4, ranks=16)
TRUE = Constants(2e-5, 8e-9, 3e-10, 1e-5, 4e-10, 9e-5, 9e-9)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCAI_CACHE", str(tmp_path / "cache"))


def measured(noise):
    rng = np.random.default_rng(0)
    return [
        (name, 4**k, select.predict(name, 4**k, SHAPE, TRUE) * (1 + noise * rng.uniform(-1, 1)))
        for name in select.ALGORITHMS
        for k in range(1, 14)
    ]


def test_a_fit_recovers_the_constants_behind_measured_times():
    np.testing.assert_allclose(select.fit(measured(0.0), SHAPE), TRUE, rtol=1e-6)
    noisy = select.fit(measured(0.1), SHAPE)
    for name, nbytes, seconds in measured(0.0):
        assert select.predict(name, nbytes, SHAPE, noisy) == pytest.approx(seconds, rel=0.25)


def test_no_constant_is_negative_even_if_times_make_no_sense():
    rows = [("ring", 1 << k, 1e-3 / (k + 1)) for k in range(2, 20)]
    assert min(select.fit(rows, SHAPE)) >= 0


def test_short_arrays_take_few_messages_and_long_ones_few_bytes():
    untuned = Constants()
    assert select.choose(8, Shape(64, 1, 64), untuned) == "halving_doubling"
    assert select.choose(1 << 28, Shape(64, 1, 64), untuned) == "ring"
    assert select.choose(1 << 24, Shape(8, 8, 64), untuned) == "hierarchical"
    assert select.choose(1 << 28, Shape(5, 1, 5), untuned) == "ring"  # 5 is no power of two


def test_the_library_is_chosen_only_where_it_was_measured_and_is_faster():
    shape = Shape(4, 1, 4)
    assert "mpi" not in select.candidates(shape, Constants())
    measured = Constants()._replace(library_call_s=1e-6, library_byte_s=1e-7)
    assert select.choose(8, shape, measured) == "mpi"
    assert select.choose(1 << 20, shape, measured) != "mpi"


def test_constants_are_kept_for_a_shape_and_lent_to_others_without_the_librarys():
    assert select.load("some MPI", SHAPE) == (Constants(), "untuned")
    select.save(TRUE, "some MPI", SHAPE)
    assert select.load("some MPI", SHAPE) == (TRUE, "tuned")
    lent, source = select.load("some MPI", Shape(2, 1, 2))
    assert source == "tuned for another shape"
    assert lent == TRUE._replace(library_call_s=0.0, library_byte_s=0.0)
    assert select.load("another MPI", SHAPE) == (Constants(), "untuned")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 3}', '{"a": {"speed": 1}}', '{"a": {"message_s": "fast"}}'])
def test_a_damaged_cache_is_as_good_as_none(text):
    select.save(TRUE, "some MPI", SHAPE)
    select.cache_file().write_text(text)
    assert select.load("some MPI", SHAPE) == (Constants(), "untuned")
    select.save(TRUE, "some MPI", SHAPE)
    assert select.load("some MPI", SHAPE) == (TRUE, "tuned")
    assert len(json.loads(select.cache_file().read_text())) == 1


def test_all_ranks_choose_alike_and_a_variable_overrides(monkeypatch):
    monkeypatch.setenv("HPCAI_RANKS_PER_NODE", "2")

    def program(comm):
        x = comm.allreduce(np.full(100, comm.rank + 1.0))
        return comm.choice.shape, x.tolist() == [10.0] * 100

    assert threads.run(4, program) == [(Shape(2, 2, 4), True)] * 4
    assert threads.run(3, lambda comm: comm.choice.shape) == [Shape(2, 0, 3)] * 3
    monkeypatch.setenv("HPCAI_ALGORITHM", "fast")
    with pytest.raises(ValueError, match="unknown algorithm 'fast'"):
        threads.run(2, program)
