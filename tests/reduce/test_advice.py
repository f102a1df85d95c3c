"""Predictions: curves of the wire, coding with nothing sent, and the choice between them."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.compress import quantize
from hpcai.reduce import advice
from hpcai.reduce.advice import Curve, Prediction, Wire
from hpcai.reduce.combine import by_gather, error_feedback, exact
from hpcai.reduce.counting import Sent, SilentRank


def test_curves_grow_and_are_the_same_on_all_ranks():
    wires = threads.run(3, lambda comm: advice.measure_wire(comm, 100_000))
    assert wires[0] == wires[1] == wires[2]
    assert 0 <= wires[0].hidden <= 1
    assert set(wires[0].curves) == set(advice.KINDS)
    for curve in wires[0].curves.values():
        assert curve.sizes == tuple(sorted(set(curve.sizes)))
        assert 100_000 <= curve.sizes[-1] < 100_012
        assert min(curve.seconds) > 0


@pytest.mark.parametrize("size", [2, 4])
def test_a_prediction_adds_what_the_wire_takes_for_what_is_sent(size):
    """On a wire of 1 us a byte coding does not matter."""
    wire = Wire(dict.fromkeys(advice.KINDS, Curve((0, 1000), (0.0, 1e-3))), call_s=0.0, byte_s=1e-6, hidden=1.0)
    n, other = 10_240, 256

    def program(comm):
        plain = advice.predict([(n, exact()), (other, exact())], comm, wire)
        int8 = error_feedback(by_gather(quantize.int8()))
        return plain, advice.predict([(n, int8), (other, int8)], comm, wire)

    results = threads.run(size, program)
    assert all(result == results[0] for result in results)
    plain, int8 = results[0]
    assert plain.wire_s == pytest.approx(4 * (n + other) * 1e-6)
    assert int8.wire_s == pytest.approx(size * (n + other) * (1 + 4 / 256) * 1e-6, rel=1e-3)  # rows are padded
    assert int8.coding_s > 0
    assert plain.sent == pytest.approx(2 * (size - 1) / size * 4 * (n + other))


def test_the_best_must_be_better_than_staying():
    stay = Prediction("none", 0.0, 1.0, 0.0)
    assert advice.best([stay, Prediction("int8", 0.5, 0.48, 0.0)]).name == "none"
    assert advice.best([stay, Prediction("int8", 0.5, 0.4, 0.0), Prediction("int4", 0.5, 0.3, 0.0)]).name == "int4"


def test_reducers_get_finite_gradients_of_every_length():
    assert np.isfinite(threads.run(2, lambda comm: advice.predict([(0, exact())], comm, advice.measure_wire(comm, 8)))[0].seconds)


@pytest.mark.parametrize("largest, last", [(1, 1024), (5000, 5000), (100_000, 100_000), (1 << 20, 1 << 20)])
def test_a_curve_is_measured_at_few_sizes_up_to_the_largest(monkeypatch, largest, last):
    monkeypatch.setattr(advice, "_undisturbed", lambda comm, call: 0.0)
    sizes = advice._curve(SimpleNamespace(size=2), len, np.empty, largest).sizes
    assert sizes[0] == 2 * 16 * 4
    assert all(a < b <= 4 * a for a, b in itertools.pairwise(sizes))
    assert last <= sizes[-1] < last + 2 * 4
    assert len(sizes) <= 3 + np.log(last / 128) / np.log(4)


def test_a_curve_ends_where_calls_take_long(monkeypatch):
    monkeypatch.setattr(advice, "_undisturbed", lambda comm, call: 2 * advice.LONGEST_S)
    assert advice._curve(SimpleNamespace(size=2), len, np.empty, 1 << 30).sizes == (128,)


def test_a_curve_has_straight_lines_and_does_not_fall_beyond_its_end():
    curve = Curve((100, 200, 400), (1.0, 3.0, 4.0))
    assert [curve.at(n) for n in (0, 100, 150, 200, 300, 400, 600, 1400)] == [1.0, 1.0, 2.0, 3.0, 3.5, 4.0, 5.0, 9.0]
    assert Curve((100, 200), (2.0, 1.0)).at(1000) == 1.0
    assert Curve((100,), (2.0,)).at(1000) == 2.0


def test_a_stream_is_measured_by_what_calls_and_bytes_take_alone_and_beside_copies(monkeypatch):
    """Ten arrays with two copies each. Copying alone takes 0.1 s, short arrays 0.03 s more, so that bytes of long ones, 0.23 s
    without copies, take 0.2 s; both together 0.25 s instead of 0.33 s: of the 0.1 s of copying 0.08 s are hidden.
    """
    times = {"a copy": 5e-3, "alone": 1e-2, "copies": 0.1, "short": 0.13, "long": 0.23, "long, with copies": 0.25}
    asked = iter(times.values())
    monkeypatch.setattr(advice, "_undisturbed", lambda comm, call: next(asked))
    part = advice.PART_BYTES
    found = advice._stream(SilentRank(0, 2))
    assert found == pytest.approx((0.003, 0.2 / (10 * part), 0.8))
    assert next(asked, None) is None


@pytest.mark.parametrize("alone_s, count", [(1.0, 8), (0.1 / 40, 40), (1e-6, 64)])
def test_a_stream_has_as_many_arrays_as_take_a_tenth_of_a_second_within_bounds(monkeypatch, alone_s, count):
    """By what a call is said to cost: 0.1 s more than copying for all of them."""
    asked = iter([1.0, alone_s, 0.1, 0.2, 0.5, 0.5])
    monkeypatch.setattr(advice, "_undisturbed", lambda comm, call: next(asked))
    assert advice._stream(SilentRank(0, 2))[0] == pytest.approx(0.1 / count)


def test_a_disturbed_measurement_of_short_arrays_makes_no_long_one_of_streams(monkeypatch):
    """The last of the short arrays took 1 s, for once: continued to a part that would be minutes, with as many copies each."""
    monkeypatch.setattr(advice, "_curve", lambda comm, call, make, largest: Curve((128, 512, 1024), (1e-5, 1e-5, 1.0)))
    copied, inner = [], np.copyto

    def copyto(target, source):
        copied.append(1)
        assert len(copied) < 20_000
        inner(target, source)

    monkeypatch.setattr(advice.np, "copyto", copyto)
    wire = threads.run(1, lambda comm: advice.measure_wire(comm, 8))[0]
    assert set(wire.curves) == set(advice.KINDS)


@pytest.mark.parametrize("hidden, coding_s", [(0.0, 6.0), (0.5, 5.0), (1.0, 4.0)])
def test_coding_hides_behind_a_stream_as_far_as_there_is_one_and_the_wire_lets_it(monkeypatch, hidden, coding_s):
    """A stream of 3 arrays of 1000 bytes, 3 s in all: of 6 s of coding, of which 2 s could hide, those may. Median of three."""
    curves = {kind: Curve((0, 1000), (0.0, s)) for kind, s in zip(advice.KINDS, (1.0, 2.0, 4.0, 8.0), strict=True)}

    def coding(reducer, gradient, comm, counting):
        counting.calls += [Sent("gradient", 500), Sent("allreduce", 1000), Sent("alltoall", 250)]
        counting.calls += [Sent("allgather", 1000, 0.0, beside=True)] * 3
        return [(60.0, 2.0), (6.0, 2.0), (0.6, 0.2)]

    monkeypatch.setattr(advice, "_coding_s", coding)
    found = advice.predict([(10, exact()), (20, exact())], SilentRank(0, 2), Wire(curves, 0.25, 1e-3, hidden))
    assert found.coding_s == pytest.approx(2 * coding_s)
    assert found.wire_s == pytest.approx(2 * (0.5 + 2.0 + 2.0 + 3 * 0.25 + 3.0))
    assert found.seconds == found.coding_s + found.wire_s
    assert found.sent == pytest.approx(2 * (500 + 1000 + 125 + 1500))


def test_no_more_coding_hides_than_the_stream_takes(monkeypatch):
    def coding(reducer, gradient, comm, counting):
        counting.calls.append(Sent("allgather", 1000, 0.0, beside=True))
        return [(9.0, 7.0)]

    monkeypatch.setattr(advice, "_coding_s", coding)
    flat = dict.fromkeys(advice.KINDS, Curve((0,), (0.0,)))
    assert advice.predict([(10, exact())], SilentRank(0, 2), Wire(flat, 0.0, 1e-3, 0.5)).coding_s == 9.0 - 0.5 * 1.0


@pytest.mark.parametrize("seconds, name", [(1.0, "none"), (0.96, "none"), (0.953, "none"), (0.952, "int8"), (0.5, "int8")])
def test_staying_is_left_for_what_is_a_twentieth_quicker(seconds, name):
    assert advice.best([Prediction("none", 0.5, 0.5, 0.0), Prediction("int8", seconds, 0.0, 0.0)]).name == name
