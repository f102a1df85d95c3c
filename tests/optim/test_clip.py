"""Clipping: what is longer than the limit becomes as long as the limit, from the first bit above it; all else stays."""

import math

import numpy as np
import pytest

from hpcai.optim import clip

LIMITS = [1e-6, 0.25, 0.5, 1.0, 2.0, 3.0, 1e6]


def test_clipping_shortens_long_gradients_only():
    assert clip.factor(10.0, 2.0) == 0.2
    assert clip.factor(1.0, 2.0) == 1.0
    assert clip.factor(10.0, 0.0) == 1.0


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("over", [1 + 2**-40, 1.001, 1.5, 2.0, 3.0, 1e3, 1e30])
def test_any_norm_above_the_limit_becomes_the_limit(limit, over):
    factor = clip.factor(over * limit, limit)
    assert factor < 1
    assert factor * (over * limit) == pytest.approx(limit, rel=1e-15)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("under", [0.0, 1e-30, 0.5, 0.999, 1 - 2**-40, 1.0])
def test_any_norm_up_to_the_limit_stays(limit, under):
    assert clip.factor(under * limit, limit) == 1.0


@pytest.mark.parametrize("norm", [0.0, 1e-3, 0.5, 1.0, 7.0, 1e30])
def test_without_a_limit_every_norm_stays(norm):
    assert clip.factor(norm, 0.0) == 1.0


@pytest.mark.parametrize("norm", [math.inf, math.nan])
@pytest.mark.parametrize("limit", [0.0, 2.0, math.inf])
def test_no_factor_is_given_for_what_is_not_finite(norm, limit):
    with pytest.raises(ValueError, match="finite"):
        clip.factor(norm, limit)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_norm_is_the_euclidean_one_in_f64(dtype):
    assert clip.norm(np.array([3, 0, -4], dtype)) == 5.0
    assert clip.norm(np.full(10_000, 0.5, dtype)) == 50.0
    assert clip.norm(np.array([3e30, -4e30], dtype)) == pytest.approx(5e30, rel=1e-6)  # whose squares are beyond f32
    assert clip.norm(np.zeros(5, dtype)) == clip.norm(np.zeros(0, dtype)) == 0.0
    assert math.isnan(clip.norm(np.array([1, np.nan], dtype)))
    assert clip.norm(np.array([1, -np.inf], dtype)) == math.inf
