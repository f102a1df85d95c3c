"""Each kernel equals its reference, bit for bit, on hard values, odd lengths and unaligned starts."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcai.ops import native, reference
from hpcai.xp import DTYPES, accumulation_dtype

SIZES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 101, 1000)

pytestmark = pytest.mark.skipif(not native.is_native(), reason="native kernels are not built")


def hard(name, n, seed, offset=0):
    """n values, among them zeros of both signs, subnormals, the extremes, infinities and NaN; not aligned with offset > 0."""
    rng = np.random.default_rng([seed, n])
    dtype = DTYPES[name]
    out = np.empty(n + offset, dtype)[offset:]
    if dtype.kind == "i":
        info = np.iinfo(dtype)
        out[:] = rng.integers(info.min, info.max, n, dtype, endpoint=True)
        return out
    bits = rng.integers(0, 1 << (8 * dtype.itemsize - 1), n, np.uint64) | (
        rng.integers(0, 2, n, np.uint64) << np.uint64(8 * dtype.itemsize - 1)
    )
    out.view(f"u{dtype.itemsize}")[:] = bits
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 65504, 1e-8], np.float64)
    with np.errstate(all="ignore"):
        out[::3] = special[rng.integers(0, len(special), len(out[::3]))].astype(dtype)
    return out


def assert_same(a, b):
    """Equal bits, except that any NaN is as good as any other."""
    if a.dtype.kind == "i":
        np.testing.assert_array_equal(a, b)
        return
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    np.testing.assert_array_equal(wide_a, wide_b)
    same_sign = np.signbit(wide_a) == np.signbit(wide_b)
    assert (same_sign | np.isnan(wide_a) | (wide_a == 0)).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("op", ["sum", "max", "min"])
@pytest.mark.parametrize("name", DTYPES)
def test_fold(name, op):
    for n, offset in itertools.product(SIZES, (0, 1)):
        x = hard(name, n, 1, offset)
        acc = hard(name, n, 2, offset).astype(accumulation_dtype(x.dtype))
        want = reference.fold_into(acc.copy(), x, op)
        assert native.fold_into(acc, x, op) is acc
        assert_same(acc, want)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("op", ["sum", "max", "min"])
@pytest.mark.parametrize("name", DTYPES)
def test_fold_ranks(name, op):
    """In rank order, through a wider accumulator, rounded once; into all arrays, from `start` to `stop` and nowhere else."""
    for ranks, n, offset in itertools.product((2, 3, 5), (*SIZES, 127, 128, 129, 300), (0, 1)):
        xs = [hard(name, n, rank, offset) for rank in range(ranks)]
        start, stop = n // 5, n - n // 7
        acc = xs[0].astype(accumulation_dtype(xs[0].dtype))
        for x in xs[1:]:
            reference.fold_into(acc, x, op)
        wants = [x.copy() for x in xs]
        for want in wants:
            want[start:stop] = acc[start:stop].astype(want.dtype)
        places = [x.__array_interface__["data"][0] for x in xs]
        native.fold_ranks_into(places, places, xs[0].dtype, op, start, stop)
        for x, want in zip(xs, wants, strict=True):
            assert_same(x, want)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_every_16_bit_value_widens_and_comes_back(name):
    every = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[name])
    wide = native.cast_into(np.empty(1 << 16, np.float32), every)
    assert_same(wide, every.astype(np.float32))
    assert_same(native.cast_into(np.empty_like(every), wide), every)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_narrowing_rounds_to_nearest_even_everywhere(name):
    """Every 16-bit value, the ties between neighbours, and a float to each side of both."""
    every = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[name]).astype(np.float64)
    every = np.sort(every[np.isfinite(every)])
    ties = (every[1:] + every[:-1]) / 2
    middle = np.concatenate([every, ties]).astype(np.float32)
    values = np.concatenate(
        [
            middle,
            np.nextafter(middle, np.float32(np.inf)),
            np.nextafter(middle, np.float32(-np.inf)),
            hard("f32", 100_000, 3),
        ]
    )
    assert_same(
        native.cast_into(np.empty(len(values), DTYPES[name]), values),
        reference.cast_into(np.empty(len(values), DTYPES[name]), values),
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["f32", "f64", "i32", "i64"])
def test_divide(name):
    for n, divisor in itertools.product(SIZES, (1, 2, 3, 7, 1024)):
        x = hard(name, n, 4)
        want = reference.divide_into(x.copy(), divisor)
        assert_same(native.divide_into(x, divisor), want)


def test_without_the_kernels_the_reference_serves(monkeypatch):
    monkeypatch.setattr(native, "_native", None)
    assert not native.is_native()
    assert native.fold_into(np.ones(2), np.ones(2), "sum").tolist() == [2, 2]
    assert native.cast_into(np.ones(2, np.float16), np.full(2, 3, np.float32)).tolist() == [3, 3]
    assert native.divide_into(np.array([-7, 7]), 2).tolist() == [-3, 3]


@pytest.mark.skipif(not native.is_native() or "HPCAI_LANES" in os.environ, reason="once, with native kernels")
@pytest.mark.parametrize("lanes", ["v3", "none"])
def test_what_older_processors_run_obeys_the_same_laws(lanes):
    files = [__file__, str(Path(__file__).with_name("test_blocks.py")), str(Path(__file__).with_name("test_integers.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HPCAI_LANES": lanes})
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_one_nan_stays_one_nan_wherever_it_stands(name):
    for place in range(70):
        x = np.ones(70, np.float32)
        x.view(np.uint32)[place] = 0x7F800001  # a NaN that is infinity where its low bits are cut off
        y = native.cast_into(np.empty(70, DTYPES[name]), x)
        assert np.flatnonzero(np.isnan(y.astype(np.float32))).tolist() == [place]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_casts_with_a_memory_or_a_weight_equal_the_reference(name):
    for n in (0, 1, 7, 15, 16, 17, 33, 1000, 5001):
        rng = np.random.default_rng(n)
        x = (rng.normal(size=n) * np.exp2(rng.integers(-30, 14, n))).astype(np.float32)
        x[rng.random(n) < 0.01] = np.nan
        x[rng.random(n) < 0.01] = np.inf
        memory = (rng.normal(size=n) * 1e-3).astype(np.float32)
        results = []
        for module in (native, reference):
            kept, half = memory.copy(), np.empty(n, DTYPES[name])
            module.cast_keeping_into(half, x, kept)
            wide = module.widen_scaled_into(np.full(n, np.nan, np.float32), half, 0.3, False)
            added = module.widen_scaled_into(memory.copy(), half, 0.3, True)
            results.append((half.astype(np.float32), kept, wide, added))
        for fast, slow in zip(*results, strict=True):
            np.testing.assert_array_equal(fast, slow)
    with pytest.raises(TypeError, match="float64"):
        native.cast_keeping_into(np.zeros(3, np.float16), np.zeros(3), np.zeros(3))
