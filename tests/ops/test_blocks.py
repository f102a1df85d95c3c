"""The block kernels equal their reference, bit for bit, on hard values, odd lengths and all formats."""

import itertools

import numpy as np
import pytest

from hpcai.ops import blocks, blocks_reference, native
from hpcai.xp import float8

SIZES = (0, 1, 2, 7, 8, 15, 16, 17, 255, 256, 257, 300, 1024, 5001)

pytestmark = [
    pytest.mark.skipif(not native.is_native(), reason="native kernels are not built"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def values(kind, n, seed=0):
    rng = np.random.default_rng([seed, n])
    x = rng.normal(size=n).astype(np.float32)
    if kind == "magnitudes":
        x *= np.exp2(rng.integers(-140, 126, n)).astype(np.float32)
    elif kind == "constant":
        x[:] = -0.37
    elif kind == "zeros":
        x[:] = np.where(rng.integers(0, 2, n), 0.0, -0.0)
    elif kind == "tiny":
        x *= np.float32(1e-44)
    elif kind == "ties":
        x[:] = rng.integers(-254, 255, n) / 2
        x[::50] = 127
    elif kind == "not finite":
        x[rng.random(n) < 0.01] = np.nan
        x[rng.random(n) < 0.01] = np.inf
        x[rng.random(n) < 0.01] = -np.inf
    return x


KINDS = ("normal", "magnitudes", "constant", "zeros", "tiny", "ties", "not finite")


def encoded(module, x, form, memory, key):
    scales, packed = np.empty(blocks.block_count(x.size), np.float32), np.empty(blocks.packed_bytes(x.size, form), np.uint8)
    kept = None if memory is None else memory.copy()
    bad = module.encode_blocks_into(scales, packed, x, form, kept, key)
    return bad, scales, packed, kept


def assert_same_bytes(a, b):
    np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@pytest.mark.parametrize("key", [None, 12345])
@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize("form", blocks.FORMATS)
def test_encode_and_decode_equal_the_reference(form, with_memory, key):
    for kind, n in itertools.product(KINDS, SIZES):
        x = values(kind, n)
        memory = values("normal", n, 1) * np.float32(0.1) if with_memory and kind != "tiny" else x * 0 if with_memory else None
        bad, scales, packed, kept = encoded(blocks, x, form, memory, key)
        want = encoded(blocks_reference, x, form, memory, key)
        assert bad == want[0]
        np.testing.assert_array_equal(scales, want[1], err_msg=f"{kind} {n}")
        np.testing.assert_array_equal(packed, want[2], err_msg=f"{kind} {n}")
        if kept is not None:
            np.testing.assert_array_equal(kept, want[3])
        for weight in (1.0, 1 / 3):
            plain = blocks.decode_blocks_into(np.full_like(x, np.nan), scales, packed, form, weight)
            wanted = blocks_reference.decode_blocks_into(np.empty_like(x), scales, packed, form, weight, False)
            np.testing.assert_array_equal(plain, wanted)
            acc = np.ones_like(x)
            np.testing.assert_array_equal(blocks.add_blocks_into(acc, scales, packed, form, weight), np.float32(1) + wanted)


@pytest.mark.parametrize("form", ["int8", "int4", "fp8"])
def test_errors_are_within_what_the_format_promises(form):
    for kind in ("normal", "constant", "ties", "magnitudes"):
        x = values(kind, 2560)
        _, scales, packed, _ = encoded(blocks, x, form, None, None)
        y = blocks.decode_blocks_into(np.empty_like(x), scales, packed, form)
        top = np.repeat(np.abs(x.reshape(-1, 256)).max(1), 256).astype(np.float64)
        bound = {"int8": top / 253, "int4": top / 13.9, "fp8": np.maximum(np.abs(x) / 15.9, top * 2.0**-18)}[form]
        assert (np.abs(y - x.astype(np.float64)) <= bound + 1e-37).all()


def test_every_fp8_value_is_kept_and_ties_go_to_even():
    every = np.arange(256, dtype=np.uint8).view(float8).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    between = (every[1:] + every[:-1]) / 2
    x = np.concatenate([every, between, np.nextafter(between, np.float32(np.inf)), [448.0]]).astype(np.float32)
    rows = np.full((len(x), 256), 448, np.float32)
    rows[:, 0] = x
    _, scales, packed, _ = encoded(blocks, rows.reshape(-1), "fp8", None, None)
    assert (scales == 1).all()
    np.testing.assert_array_equal(
        packed.view(float8).astype(np.float32).reshape(-1, 256)[:, 0], x.astype(float8).astype(np.float32)
    )


@pytest.mark.parametrize("form", ["int8", "int4", "fp8"])
def test_random_rounding_is_right_on_average(form):
    x = values("normal", 256)
    total = np.zeros(256)
    for key in range(3000):
        _, scales, packed, _ = encoded(blocks, x, form, None, key)
        total += blocks.decode_blocks_into(np.empty_like(x), scales, packed, form)
    spacing = {"int8": scales[0], "int4": scales[0], "fp8": np.abs(x) / 8 + scales[0] * 2.0**-9}[form]
    assert (np.abs(total / 3000 - x) < 5 * spacing / 2 / np.sqrt(3000) + 1e-6).mean() > 0.98


@pytest.mark.parametrize("sign", [1, -1])
def test_random_rounding_of_a_blocks_largest_value_stays_within_the_levels(sign):
    # Where 1 / scale is rounded up, the largest value is a little more than 127 levels: one of some 100,000 would be rounded
    # to 128, which is no level, or -128, which stands for NaN.
    tops = np.linspace(1, 2, 1000, dtype=np.float32)
    over = tops * (np.float32(1) / (tops / np.float32(127))) > 127
    x = np.full(1 << 21, sign * tops[over][0], np.float32)
    _, scales, packed, _ = encoded(blocks, x, "int8", None, 12345)
    y = blocks.decode_blocks_into(np.empty_like(x), scales, packed, "int8")
    assert np.unique(y).tolist() == [sign * scales[0] * np.float32(127)]


def test_what_is_not_finite_decodes_to_nan_and_nothing_else_does():
    x = values("not finite", 5001)
    for form in ("int8", "int4", "fp8"):
        _, scales, packed, _ = encoded(blocks, x, form, None, None)
        y = blocks.decode_blocks_into(np.empty_like(x), scales, packed, form)
        np.testing.assert_array_equal(np.isnan(y), ~np.isfinite(x))


@pytest.mark.parametrize("with_memory", [False, True])
def test_what_is_just_the_threshold_is_selected_wherever_it_stands(with_memory):
    for place in range(131):
        x = np.zeros(131, np.float32)
        x[place] = -0.5
        index, value, found = blocks.select_above(x, 0.5, 4, np.zeros_like(x) if with_memory else None)
        assert (index.tolist(), value.tolist(), found) == ([place], [-0.5], 1)


def test_select_above():
    for n in (0, 1, 63, 64, 65, 5000, 8192):
        x = values("not finite", n)
        for threshold, room in itertools.product((0.5, 2.0, 1e9), (0, 10, n)):
            index, value, found = blocks.select_above(x, threshold, room)
            want, values_there, count = blocks_reference.select_above(x, threshold, room, None)
            np.testing.assert_array_equal(index, want)
            np.testing.assert_array_equal(value, values_there)
            assert found == count
            memory = values("normal", n, 1)
            total = x + memory
            index, value, found = blocks.select_above(x, threshold, room, memory)
            want, values_there, count = blocks_reference.select_above(total, threshold, room, None)
            np.testing.assert_array_equal(index, want)
            np.testing.assert_array_equal(value, values_there)
            np.testing.assert_array_equal(memory, total)
            assert found == count
