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
