"""Row-wise verbs of sequence models in Numba: norms, embeddings, dropout, cross-entropy over a vocabulary that ranks share.

A row is a token. As in fused.py there is no fast-math: sums are in f64, in a fixed order. An exponential in f32 is a
polynomial (Cephes' expf, relative error 1e-7), because loops that call the C library for each element are not vectorised. An
exponential in f64 calls the library.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba.extending import overload

from hpcai.ops.door import U64, takes
from hpcai.xp import Array

_compile: Any = numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)
_inline: Any = numba.njit(inline="always", error_model="numpy")

F = np.float32


@_inline
def _exp_f32(x):
    # e**x = 2**n e**r, |r| <= ln(2)/2. Two steps make r exact; bits make 2**n. NaN gives a huge number or NaN.
    x = min(max(x, F(-87.0)), F(88.0))
    n = np.floor(x * F(1.44269504) + F(0.5))
    r = x - n * F(0.693359375) + n * F(2.12194440e-4)
    p = F(1.9875691500e-4)
    p = p * r + F(1.3981999507e-3)
    p = p * r + F(8.3334519073e-3)
    p = p * r + F(4.1665795894e-2)
    p = p * r + F(1.6666665459e-1)
    p = p * r + F(5.0000001201e-1)
    p = p * r * r + r + F(1.0)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


def _exp(x):
    """e**x in the dtype of x. For compiled code only."""
    raise NotImplementedError


@overload(_exp, inline="always")
def _exp_by_dtype(x):
    if isinstance(x, numba.types.Float) and x.bitwidth == 32:
        return lambda x: _exp_f32(x)
    return lambda x: math.exp(x)


# GELU in f32 (fused.py has f64). Phi(x) is Abramowitz & Stegun's formula 26.2.17, absolute error 7.5e-8: one exponential serves
# both Phi and its derivative phi.


@_inline
def _normal_f32(x):
    """(Phi(x), phi(x)) of the standard normal distribution."""
    density = _exp_f32(F(-0.5) * x * x)
    t = F(1.0) / (F(1.0) + F(0.2316419) * abs(x))
    p = t * (F(0.127414796) + t * (F(-0.142248368) + t * (F(0.7107068705) + t * (F(-0.7265760135) + t * F(0.5307027145)))))
    tail = p * density
    return (tail if x < F(0.0) else F(1.0) - tail), density * F(0.3989422804)


@_compile
def gelu_f32(out, x):
    """out = x Phi(x). (n,) f32."""
    for i in range(x.size):
        phi, _ = _normal_f32(x[i])
        out[i] = x[i] * phi


@_compile
def gelu_backward_f32(dx, dy, x):
    """dx = dy (Phi(x) + x phi(x)). (n,) f32."""
    for i in range(x.size):
        phi, density = _normal_f32(x[i])
        dx[i] = dy[i] * (phi + x[i] * density)


# Norms: y = (x - mean) / sqrt(variance + EPSILON) * weight + bias of each row; RMS norms have no mean and no bias.

EPSILON = 1e-5


@_inline
def _sum_of_lanes(lanes):
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]))


@_compile
def _layer_norm(y, means, inverse, x, weight, bias, centred):
    width = x.shape[1]
    whole = width - width % 8
    for i in range(x.shape[0]):
        mean = 0.0
        if centred:
            lanes = np.zeros(8)
            for j in range(0, whole, 8):
                for k in range(8):
                    lanes[k] += x[i, j + k]
            for j in range(whole, width):
                lanes[0] += x[i, j]
            mean = _sum_of_lanes(lanes) / width
        squares = np.zeros(8)
        for j in range(0, whole, 8):
            for k in range(8):
                squares[k] += (x[i, j + k] - mean) * (x[i, j + k] - mean)
        for j in range(whole, width):
            squares[0] += (x[i, j] - mean) * (x[i, j] - mean)
        scale = 1.0 / math.sqrt(_sum_of_lanes(squares) / width + EPSILON)
        middle, factor = x.dtype.type(mean), x.dtype.type(scale)
        means[i], inverse[i] = middle, factor
        if centred:
            for j in range(width):
                y[i, j] = (x[i, j] - middle) * factor * weight[j] + bias[j]
        else:
            for j in range(width):
                y[i, j] = x[i, j] * factor * weight[j]


def layer_norm_into(y, mean, inverse, x, weight, bias=None):
    """See rows.py."""
    _layer_norm(y, mean, inverse, x, weight, weight if bias is None else bias, bias is not None)
    return y


@_compile
def _layer_norm_backward(dx, dy, x, means, inverse, weight, centred):
    width = dy.shape[1]
    whole = width - width % 8
    for i in range(dy.shape[0]):
        sums, dots, middle, factor = np.zeros(8), np.zeros(8), means[i], inverse[i]
        for j in range(0, whole, 8):
            for k in range(8):
                g = dy[i, j + k] * weight[j + k]
                sums[k] += g
                dots[k] += g * (x[i, j + k] - middle)
        for j in range(whole, width):
            g = dy[i, j] * weight[j]
            sums[0] += g
            dots[0] += g * (x[i, j] - middle)
        shift = dx.dtype.type(_sum_of_lanes(sums) / width if centred else 0.0)
        slope = dx.dtype.type(_sum_of_lanes(dots) * factor / width)
        for j in range(width):
            dx[i, j] = (dy[i, j] * weight[j] - shift - (x[i, j] - middle) * factor * slope) * factor


def layer_norm_backward_into(dx, dy, x, mean, inverse, weight, centred=True):
    """See rows.py."""
    _layer_norm_backward(dx, dy, x, mean, inverse, weight, centred)
    return dx


@_compile
def _layer_norm_gradients(dweight, dbias, dy, x, means, inverse, centred):
    dweight[:] = 0
    dbias[:] = 0
    for i in range(dy.shape[0]):
        middle, factor = means[i], inverse[i]
        for j in range(dy.shape[1]):
            dweight[j] += dy[i, j] * ((x[i, j] - middle) * factor)
        if centred:
            for j in range(dy.shape[1]):
                dbias[j] += dy[i, j]


def layer_norm_gradients_into(dweight, dbias, dy, x, mean, inverse):
    """See rows.py."""
    _layer_norm_gradients(dweight, np.empty(0, dy.dtype) if dbias is None else dbias, dy, x, mean, inverse, dbias is not None)


# Embeddings.


@_compile
def _embed(y, tokens, table, first, positions, begin):
    for i in range(tokens.size):
        row, place = tokens[i] - first, (begin + i) % positions.shape[0]
        if 0 <= row < table.shape[0]:
            for j in range(y.shape[1]):
                y[i, j] = table[row, j]
        else:
            for j in range(y.shape[1]):
                y[i, j] = 0
        if positions.shape[1]:
            for j in range(y.shape[1]):
                y[i, j] += positions[place, j]


@takes(
    y="T rows width",
    tokens="i64 rows",
    table="T n width",
    positions="T context width",
    writes="y",
    where={"first >= 0": "a first token of at least 0", "context": "at least one position"},
)
def embed_into(y: Array, tokens: Array, table: Array, first: int = 0, positions: Array | None = None) -> Array:
    """y[i] = table[tokens[i] - first] (0 for a token that is not in the table) + positions[i modulo context]. Returns y."""
    _embed(y, tokens, table, first, np.empty((1, 0), y.dtype) if positions is None else positions, 0)
    return y


@_compile
def _embed_backward(dtable, dpositions, dy, tokens, first):
    dtable[:] = 0
    dpositions[:] = 0
    for i in range(tokens.size):
        row, place = tokens[i] - first, i % dpositions.shape[0]
        if 0 <= row < dtable.shape[0]:
            for j in range(dy.shape[1]):
                dtable[row, j] += dy[i, j]
        if dpositions.shape[1]:
            for j in range(dy.shape[1]):
                dpositions[place, j] += dy[i, j]


@takes(
    dtable="T n width",
    dpositions="T context width",
    dy="T rows width",
    tokens="i64 rows",
    writes="dtable dpositions",
    where={"first >= 0": "a first token of at least 0", "context": "at least one position"},
)
def embed_gradients_into(dtable: Array, dpositions: Array | None, dy: Array, tokens: Array, first: int = 0) -> None:
    """Write the gradients of table and positions (or None): for each of their rows, the sum of the rows of dy that used it."""
    _embed_backward(dtable, np.empty((1, 0), dy.dtype) if dpositions is None else dpositions, dy, tokens, first)


# Dropout: a key and the element's number alone decide whether an element is zeroed, so the result does not depend on the rank.


@_inline
def _mix(value):
    # The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@_compile
def _dropout(y, x, key, first, limit, scale):
    zero = x.dtype.type(0)
    for i in range(x.size):
        number = np.uint64(first) + np.uint64(i)
        drawn = _mix(key + number * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
        y[i] = x[i] * scale if drawn >= limit else zero


@takes(y="T *", x="T *", writes="y", same="y x", where={"0 <= rate < 1": "a rate from 0 to below 1"})
def dropout_into(y: Array, x: Array, key: U64, first: U64, rate: float) -> Array:
    """y = x / (1 - rate), or 0 with probability `rate`; (key, first + i) alone decide for element i. Returns y.

    y may be x. Source: Srivastava et al., JMLR 15, 2014.
    """
    limit, scale = np.uint64(round(rate * 2**32)), x.dtype.type(1 / (1 - rate))
    _dropout(y.reshape(-1), x.reshape(-1), np.uint64(key), np.uint64(first), limit, scale)
    return y


# Cross-entropy where each rank has some columns of the logits: between the verbs, ranks combine `top`, `sums` and `picked`.


@_compile
def _row_max(top, logits):
    for i in range(logits.shape[0]):
        best = logits[i, 0]
        for j in range(1, logits.shape[1]):
            best = max(best, logits[i, j])
        top[i] = best


def row_max_into(top, logits):
    """top[i] = the largest element of row i. top: (rows,); logits: (rows, columns)."""
    _row_max(top, logits)
    return top


@_compile
def _exponentials(out, sums, picked, logits, top, labels, first):
    columns = logits.shape[1]
    whole = columns - columns % 8
    for i in range(logits.shape[0]):
        for j in range(columns):
            out[i, j] = _exp(logits[i, j] - top[i])
        total = np.zeros(8)
        for j in range(0, whole, 8):
            for k in range(8):
                total[k] += out[i, j + k]
        for j in range(whole, columns):
            total[0] += out[i, j]
        sums[i] = _sum_of_lanes(total)
        label = labels[i] - first
        picked[i] = np.float64(logits[i, label]) - np.float64(top[i]) if 0 <= label < columns else 0.0


def exponentials_into(out, sums, picked, logits, top, labels, first=0):
    """out = e**(logits - top); sums = row sums of out; picked = label's logit - top if the label is one of these columns, else 0.

    out, logits: (rows, columns), column j for class first + j; sums, picked: (rows,) f64; labels: (rows,) i64.
    """
    _exponentials(out, sums, picked, logits, top, labels, first)


@_compile
def _cross_entropy_backward(out, sums, labels, first, scale):
    for i in range(out.shape[0]):
        factor = out.dtype.type(scale / sums[i])
        for j in range(out.shape[1]):
            out[i, j] *= factor
        label = labels[i] - first
        if 0 <= label < out.shape[1]:
            out[i, label] -= scale


@takes(
    out="T rows columns",
    sums="f64 rows",
    labels="i64 rows",
    writes="out",
    where={"first >= 0": "a first class of at least 0"},
)
def cross_entropy_backward_into(out: Array, sums: Array, labels: Array, first: int, scale: float) -> Array:
    """out = scale (softmax - onehot), in place of the exponentials in out. Returns out."""
    _cross_entropy_backward(out, sums, labels, first, out.dtype.type(scale))
    return out
