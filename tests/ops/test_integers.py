"""Integer sums: kernels equal their reference bit for bit, and lanes do not overflow into each other."""

import itertools

import numpy as np
import pytest

from hpcai.ops import integers, native
from tests.ops.test_blocks import KINDS, SIZES, values

pytestmark = [
    pytest.mark.skipif(not native.is_native(), reason="native kernels are not built"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def lanes_of(x, memory, lane, limit):
    memory = memory.copy()
    tops = integers.block_tops_into(np.empty(-(-x.size // 256), np.float32), x, memory)
    scales = tops / np.float32(limit)
    scales[scales < 2.0**-126] = 0
    lanes = integers.encode_lanes_into(np.empty(x.size, lane), scales, memory, limit)
    mean = integers.decode_lanes_into(np.empty_like(x), lanes, scales, limit, 1)
    return tops, lanes, memory, mean, integers.decode_lanes_into(np.empty_like(x), lanes, scales, limit, 2)


@pytest.mark.parametrize(("lane", "limit"), [(np.uint8, 63), (np.uint8, 1), (np.uint16, 1023)])
def test_lanes_equal_the_reference(lane, limit, monkeypatch):
    for kind, n in itertools.product(KINDS, SIZES):
        x, memory = values(kind, n), values("normal", n, 1) * np.float32(0 if kind == "tiny" else 0.1)
        fast = lanes_of(x, memory, lane, limit)
        with monkeypatch.context() as without:
            without.setattr(native, "_native", None)
            slow = lanes_of(x, memory, lane, limit)
        for a, b in zip(fast, slow, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{kind} {n}")
        if kind in ("normal", "constant", "ties"):
            np.testing.assert_allclose(fast[3] + fast[2], x + memory, rtol=1e-5, atol=1e-6)


def test_a_sum_of_words_is_the_sum_of_its_lanes():
    """Levels at both ends of the range, so that every lane is as full as it can be."""
    for lane, ranks in ((np.uint8, 2), (np.uint8, 31), (np.uint16, 32), (np.uint16, 1000)):
        limit = np.iinfo(lane).max // 2 // ranks
        rng = np.random.default_rng(ranks)
        levels = rng.choice([0, limit, 2 * limit], size=(ranks, 64)).astype(lane)
        levels[:, :8], levels[:, 8:16] = 0, 2 * limit
        words = levels.view(np.int32).copy()
        total = words[0]
        for word in words[1:]:
            native.fold_into(total, word, "sum")
        np.testing.assert_array_equal(total.view(lane), levels.sum(0, dtype=np.int64))


def test_fixed_point_equals_the_reference_and_is_exact(monkeypatch):
    for n in SIZES:
        x, y = values("normal", n), values("normal", n, 1) * np.float32(1e-3)
        results = []
        for module in (native._native, None):
            monkeypatch.setattr(native, "_native", module)
            sums = integers.add_fixed_into(np.zeros(n, np.int64), x, -44)
            integers.add_fixed_into(sums, y, -44)
            results.append((sums, integers.from_fixed_into(np.empty(n, np.float32), sums, -44)))
        np.testing.assert_array_equal(results[0][0], results[1][0])
        np.testing.assert_array_equal(results[0][1], results[1][1])
        np.testing.assert_array_equal(results[0][1], (x.astype(np.float64) + y).astype(np.float32))


@pytest.mark.parametrize("built", [True, False])
def test_what_the_limit_cuts_off_stays_in_the_memory(built, monkeypatch):
    if not built:
        monkeypatch.setattr(native, "_native", None)
    before = np.array([-700, -5, -4.5, -0.5, 0, 0.5, 1.5, 4.5, 6, 700], np.float32)  # in units of the scale, which is a half
    memory, lanes = before / 2, np.empty(len(before), np.uint8)
    integers.encode_lanes_into(lanes, np.array([0.5], np.float32), memory, 5)
    levels = [-5, -5, -4, 0, 0, 0, 2, 4, 5, 5]
    assert (lanes.astype(int) - 5).tolist() == levels
    assert (2 * memory).tolist() == [a - b for a, b in zip(before.tolist(), levels, strict=True)]


@pytest.mark.parametrize("built", [True, False])
def test_fixed_point_rounds_to_nearest_even(built, monkeypatch):
    if not built:
        monkeypatch.setattr(native, "_native", None)
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.75, -0.75, 0.25, 1e6 + 0.5], np.float32) * 8
    assert integers.add_fixed_into(np.ones(9, np.int64), x, 3).tolist() == [1, 3, 3, 1, -1, 2, 0, 1, 1000001]
