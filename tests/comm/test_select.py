"""The cost model: it recovers constants from times, chooses by them, and its cache survives what is not its own."""

import json

import numpy as np
import pytest

from hpcai.comm import select, threads, tuned
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


TERMS = [
    # messages, bytes over the network, bytes folded, calls and bytes on the node, calls and bytes of the library
    ("ring", SHAPE, [30, 3000, 0, 0, 0, 0, 0]),
    ("halving_doubling", SHAPE, [8, 2400, 1500, 0, 2400, 0, 0]),
    ("hierarchical", SHAPE, [6, 2400, 0, 2, 1600, 0, 0]),
    ("mpi", SHAPE, [0, 0, 0, 0, 0, 1, 1600]),
    ("ring", Shape(5, 1, 5), [8, 2560, 0, 0, 0, 0, 0]),
    ("halving_doubling", Shape(5, 1, 5), [6, 5600, 2800, 0, 0, 0, 0]),
    ("ring", Shape(2, 6, 12), [22, 1600 * 11 / 6, 0, 0, 0, 0, 0]),
    ("halving_doubling", Shape(2, 6, 12), [8, 5600, 3000, 0, 1600, 0, 0]),
    ("hierarchical", Shape(2, 6, 12), [2, 1600, 0, 2, 1600, 0, 0]),
    ("halving_doubling", Shape(2, 0, 3), [4, 4800, 2400, 0, 0, 0, 0]),
]


@pytest.mark.parametrize("algorithm, shape, wanted", TERMS)
def test_what_an_algorithm_does_is_counted_as_by_hand(algorithm, shape, wanted):
    """1600 bytes. Of 16 ranks each sends 15/16 twice; halving exchanges 800, 400, 200, 100 and back, of which the first two stay
    on the node; of 12 ranks 4 stand beside the power of two and send all, twice; a rail has a node's share of the bytes.
    """
    assert select.terms(algorithm, 1600, shape) == pytest.approx(wanted)
    constants = Constants(1e-3, 1e-5, 1e-7, 1e-4, 1e-6, 1e-2, 1e-8)
    assert select.predict(algorithm, 1600, shape, constants) == pytest.approx(
        sum(a * b for a, b in zip(wanted, constants, strict=True))
    )


def test_what_was_not_measured_keeps_its_cautious_guess():
    rows = [("ring", nbytes, 30 * 4e-5 + nbytes * 15 / 8 * 6e-9) for nbytes in (8, 1 << 12, 1 << 24)]
    found = select.fit(rows, SHAPE)
    np.testing.assert_allclose(found, Constants()._replace(message_s=4e-5, network_byte_s=6e-9), rtol=1e-9)


def test_a_fit_weighs_relative_errors():
    """Times that no line explains: the fit is the line that numpy finds with weights of 1 / seconds."""
    nbytes, seconds = np.array([8.0, 1e3, 1e5, 1e7]), np.array([1e-5, 3e-5, 2e-4, 5e-3])
    byte_s, call_s = np.polyfit(nbytes, seconds, 1, w=1 / seconds)
    found = select.fit([("mpi", int(n), s) for n, s in zip(nbytes, seconds, strict=True)], SHAPE)
    assert found.library_call_s == pytest.approx(call_s, rel=1e-6)
    assert found.library_byte_s == pytest.approx(byte_s, rel=1e-6)


def test_without_a_column_that_came_out_negative_the_others_are_fitted_again():
    """Exactly (2, -0.3) explains the rows; alone the first column is best at sum a / sum a^2."""
    first = np.array([0.6, 0.8, 1.0])
    rows = np.stack([first, (1 - 2 * first) / -0.3], 1)
    np.testing.assert_allclose(select._nonnegative(rows), [2.4 / 2.0, 0], rtol=1e-12)
    np.testing.assert_allclose(select._nonnegative(rows[:, ::-1]), [0, 2.4 / 2.0], rtol=1e-12)
    assert select._nonnegative(-np.abs(rows)).tolist() == [0, 0]


@pytest.mark.parametrize("powers", [(0, 0, 0), (0, 40, -40), (60, 0, -60), (-60, 20, 30), (0, -40, 40), (-50, -50, 50)])
def test_units_of_the_constants_do_not_matter(powers):
    """Two columns come out negative, (3, -0.5, -1): the same one is left out in whatever units they are counted."""
    rng = np.random.default_rng(0)
    others = rng.uniform(0.1, 1, (30, 2))
    rows = np.column_stack([(1 + 0.5 * others[:, 0] + others[:, 1]) / 3, others])
    rows[:, 0] *= rng.uniform(0.9, 1.1, 30)
    units = 2.0 ** np.array(powers)
    np.testing.assert_allclose(select._nonnegative(rows * units) * units, select._nonnegative(rows), rtol=1e-9, atol=1e-12)


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
    tuned.cache_file("allreduce").write_text(text)
    assert select.load("some MPI", SHAPE) == (Constants(), "untuned")
    select.save(TRUE, "some MPI", SHAPE)
    assert select.load("some MPI", SHAPE) == (TRUE, "tuned")
    assert len(json.loads(tuned.cache_file("allreduce").read_text())) == 1


def test_all_ranks_choose_alike_and_a_variable_overrides(monkeypatch):
    monkeypatch.setenv("HPCAI_RANKS_PER_NODE", "2")

    def program(comm):
        x = comm.allreduce(np.full(100, comm.rank + 1.0))
        return comm.selection().shape, x.tolist() == [10.0] * 100

    assert threads.run(4, program) == [(Shape(2, 2, 4), True)] * 4
    assert threads.run(3, lambda comm: comm.selection().shape) == [Shape(2, 0, 3)] * 3
    monkeypatch.setenv("HPCAI_ALGORITHM", "fast")
    with pytest.raises(ValueError, match="unknown algorithm 'fast'"):
        threads.run(2, program)
