"""Row-wise verbs of sequence models and attention against a few lines of numpy in f64."""

import math

import numpy as np
import pytest

from hpcai.nn import losses
from hpcai.ops import attention, native, rows, sequence

F = [np.float32, np.float64]
SHAPES = [(0, 5), (1, 1), (3, 7), (5, 16), (9, 130)]


def rng(seed=0):
    return np.random.default_rng(seed)


def close(found, wanted, dtype, scale=1.0):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=scale * (2e-6 if dtype == np.float32 else 1e-12))


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("verbs", [rows, sequence])
def test_norm(dtype, shape, centred, verbs):
    x, dy = rng().normal(3, 2, (2, *shape)).astype(dtype)
    weight, bias = rng(1).normal(size=(2, shape[1])).astype(dtype)
    y, dx, (mean, inverse) = np.empty_like(x), np.empty_like(x), np.empty((2, len(x)), dtype)
    verbs.layer_norm_into(y, mean, inverse, x, weight, bias if centred else None)
    verbs.layer_norm_backward_into(dx, dy, x, mean, inverse, weight, centred)
    wide, slope = x.astype(np.float64), dy.astype(np.float64) * weight
    middle = wide - wide.mean(1, keepdims=True) if centred else wide
    factor = 1 / np.sqrt((middle**2).mean(1, keepdims=True) + sequence.EPSILON)
    wanted = middle * factor
    close(y, wanted * weight + (bias if centred else 0), dtype, 4)
    back = slope - wanted * (slope * wanted).mean(1, keepdims=True) - (slope.mean(1, keepdims=True) if centred else 0)
    close(dx, back * factor, dtype, 100)  # rows of one element have a factor of 300
    dweight, dbias = np.full((2, shape[1]), np.nan, dtype)
    verbs.layer_norm_gradients_into(dweight, dbias if centred else None, dy, x, mean, inverse)
    close(dweight, (dy * wanted).sum(0), dtype, 10)
    if centred:
        close(dbias, dy.sum(0, dtype=np.float64), dtype, 10)


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize(
    "context, heads, width, b", [(1, 1, 1, 1), (7, 3, 5, 2), (16, 2, 8, 3), (130, 2, 20, 1), (300, 1, 33, 1), (4, 2, 3, 0)]
)
def test_attention(dtype, context, heads, width, b):
    x = rng().normal(size=(b * context, 3 * heads * width)).astype(dtype)
    dy = rng(1).normal(size=(b * context, heads * width)).astype(dtype)
    y, norms, dx = np.full_like(dy, np.nan), np.empty((b, heads, context), dtype), np.full_like(x, np.nan)
    attention.attention_into(y, norms, x, heads)
    attention.attention_backward_into(dx, dy, y, norms, x, heads)
    for s in range(b):
        rows = slice(s * context, (s + 1) * context)
        for h in range(heads):
            columns = slice(h * width, (h + 1) * width)
            q, k, v = (x[rows, i * heads * width :][:, columns].astype(np.float64) for i in range(3))
            scores = np.where(np.tri(context, dtype=bool), q @ k.T / np.sqrt(width), -np.inf)
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            g = dy[rows, columns].astype(np.float64)
            close(y[rows, columns], p @ v, dtype, 2)
            ds = p * (g @ v.T - ((g @ v.T) * p).sum(1, keepdims=True)) / np.sqrt(width)
            for i, wanted in enumerate((ds @ k, ds.T @ q, p.T @ g)):
                close(dx[rows, i * heads * width :][:, columns], wanted, dtype, 10)


def test_attention_survives_large_scores_and_lets_nan_pass():
    x = np.zeros((8, 12), np.float32)
    x[:, :8] = 1e4 * rng().normal(size=(8, 8))
    x[:, 8:] = rng(1).normal(size=(8, 4))
    y, norms = np.empty((8, 4), np.float32), np.empty((1, 2, 8), np.float32)
    attention.attention_into(y, norms, x, 2)
    assert np.isfinite(y).all()
    assert (np.abs(y) <= np.abs(x[:, 8:]).max() + 1e-5).all()
    x[5, 9] = np.nan
    attention.attention_into(y, norms, x, 2)
    assert np.isnan(y[5:, 1]).all()


def test_attention_wants_contiguous_arrays_of_one_dtype():
    x, norms = np.zeros((4, 6), np.float32), np.zeros((1, 1, 4), np.float32)
    with pytest.raises(TypeError, match="wants norms of float64, got float32"):
        attention.attention_into(np.zeros((4, 2)), norms, x, 1)
    with pytest.raises(ValueError, match="not contiguous"):
        attention.attention_into(np.zeros((2, 4), np.float32).T, norms, x, 1)


def test_attention_without_kernels_is_the_same(monkeypatch):
    x = rng().normal(size=(24, 18)).astype(np.float32)
    outcomes = []
    for kernels in (native.kernels(), None):
        monkeypatch.setattr(native, "_native", kernels)
        y, norms = np.empty((24, 6), np.float32), np.empty((2, 3, 12), np.float32)
        attention.attention_into(y, norms, x, 3)
        outcomes.append((y, norms))
    for a, b in zip(*outcomes, strict=True):
        close(a, b, np.float32)


@pytest.mark.parametrize("dtype", F)
def test_embedding(dtype):
    table, positions = rng().normal(size=(5, 3)).astype(dtype), rng(1).normal(size=(4, 3)).astype(dtype)
    tokens, dy = np.array([3, 6, 7, 2, 3, 0, 9, 6]), rng(2).normal(size=(8, 3)).astype(dtype)
    y = sequence.embed_into(np.empty((8, 3), dtype), tokens, table, 3, positions)
    inside = (tokens >= 3) & (tokens < 8)
    wanted = np.where(inside[:, None], table[np.where(inside, tokens - 3, 0)], 0) + np.tile(positions, (2, 1))
    close(y, wanted, dtype)
    close(sequence.embed_into(y, tokens, table, 3), wanted - np.tile(positions, (2, 1)), dtype)
    dtable, dpositions = np.full_like(table, np.nan), np.full_like(positions, np.nan)
    sequence.embed_gradients_into(dtable, dpositions, dy, tokens, 3)
    back = np.zeros((5, 3))
    np.add.at(back, tokens[inside] - 3, dy[inside])
    close(dtable, back, dtype)
    close(dpositions, dy[:4] + dy[4:], dtype)


@pytest.mark.parametrize("dtype", F)
def test_dropout_depends_on_key_and_place_alone(dtype):
    x = np.ones((40, 25), dtype)
    whole = sequence.dropout_into(np.empty_like(x), x, 7, 0, 0.3)
    assert set(np.unique(whole)) == {0, dtype(1 / 0.7)}
    assert 0.25 < (whole == 0).mean() < 0.35
    part = sequence.dropout_into(np.empty_like(x[10:]), x[10:], 7, 10 * 25, 0.3)
    np.testing.assert_array_equal(part, whole[10:])
    assert (sequence.dropout_into(np.empty_like(x), x, 8, 0, 0.3) != whole).any()


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("verbs", [rows, sequence])
def test_cross_entropy_of_cut_columns(dtype, verbs):
    logits = (rng().normal(size=(6, 10)) * 20).astype(dtype)
    labels = rng(1).integers(0, 10, 6)
    top = np.maximum(
        *(verbs.row_max_into(np.empty(6, dtype), np.ascontiguousarray(half)) for half in (logits[:, :5], logits[:, 5:]))
    )
    parts = []
    for first in (0, 5):
        half = np.ascontiguousarray(logits[:, first : first + 5])
        out, both = np.empty_like(half), np.empty((2, 6))
        verbs.exponentials_into(out, *both, half, top, labels, first)
        parts.append((out, both))
    sums, picked = parts[0][1] + parts[1][1]
    for first, (out, _) in zip((0, 5), parts, strict=True):
        sequence.cross_entropy_backward_into(out, sums, labels, first, 0.5)
    wide = logits.astype(np.float64)
    p = np.exp(wide - wide.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(
        np.log(sums) - picked, -np.log(p[np.arange(6), labels]), rtol=1e-12, atol=1e-6 if dtype == np.float32 else 1e-14
    )
    close(np.hstack([parts[0][0], parts[1][0]]), 0.5 * (p - np.eye(10)[labels]), dtype)


@pytest.mark.parametrize("dtype", F)
@pytest.mark.parametrize("shape", [*SHAPES, (17, 33), (8, 16)])
def test_bias_with_gelu_and_sums_of_columns(dtype, shape):
    z, dy = rng().normal(0, 2, (2, *shape)).astype(dtype)
    bias = rng(1).normal(size=shape[1]).astype(dtype)
    y, slope, sums = z.copy(), np.full_like(z, np.nan), np.full(shape[1], np.nan, dtype)
    rows.bias_gelu_into(y, slope, bias)
    wide = z.astype(np.float64) + bias
    phi = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in wide.reshape(-1)]).reshape(shape)
    close(y, wide * phi, dtype, 2)
    wanted = phi + wide * np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi)
    close(slope, wanted, dtype, 2)
    rows.multiply_and_sum_into(slope, dy, sums)
    close(slope, wanted * dy, dtype, 4)
    close(sums, (wanted * dy).sum(0), dtype, 20)
    close(rows.column_sums_into(sums, dy), dy.sum(0, dtype=np.float64), dtype, 20)


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 40])
def test_loss_of_logits_that_are_not_finite_is_not_finite(columns):
    for broken in (np.nan, np.inf):
        x = rng().normal(size=(3, columns)).astype(np.float32)
        x[1, columns // 2] = broken
        with np.errstate(all="ignore"):
            loss, _ = losses.token_cross_entropy(tokens=columns).evaluate(np.empty_like(x), x, np.zeros((1, 3), np.int64), 1.0)
        assert not np.isfinite(loss)


def test_rows_want_contiguous_arrays_that_fit():
    x = np.zeros((4, 6), np.float32)
    for sums in (np.zeros(6), np.zeros(5, np.float32), np.zeros(12, np.float32)[::2]):
        with pytest.raises((TypeError, ValueError), match="column_sums_into wants"):
            rows.column_sums_into(sums, x)
