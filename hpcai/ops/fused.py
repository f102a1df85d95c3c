"""Elementwise and row-wise verbs in Numba. Each makes one pass over memory, and is compiled once and cached on disk.

Scalars are passed in the array's own dtype, so that f32 arithmetic stays f32; sums are in f64. There is no fast-math: every
machine and every number of ranks computes the same bits from the same input.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from hpcai.ops.door import takes
from hpcai.ops.sequence import gelu_backward_f32, gelu_f32
from hpcai.xp import Array

_compile: Any = numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)


# Data: rows of bytes or floats become a batch.


@_compile
def _gather(out, rows, index, scale, shift):
    for i in range(out.shape[0]):
        row = rows[index[i]]
        for j in range(out.shape[1]):
            out[i, j] = row[j] * scale + shift


@takes(out="T b k", rows="u8|bool|f32|f64 n k", index="i64 b <n", writes="out")
def gather_into(out: Array, rows: Array, index: Array, scale: float, shift: float) -> Array:
    """out[i] = rows[index[i]] * scale + shift. Returns out."""
    _gather(out, rows.view(np.uint8) if rows.dtype == bool else rows, index, out.dtype.type(scale), out.dtype.type(shift))
    return out


# Layers.


@_compile
def _add_bias(y, bias):
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] += bias[j]


@takes(y="T b k", bias="T k", writes="y")
def add_bias_into(y: Array, bias: Array) -> Array:
    """y += bias, row by row. Returns y."""
    _add_bias(y, bias)
    return y


@_compile
def _relu(out, x):
    zero = x.dtype.type(0)
    for i in range(x.size):
        out[i] = zero if x[i] < zero else x[i]


@takes(out="T *", x="T *", writes="out", same="out x")
def relu_into(out: Array, x: Array) -> Array:
    """out = max(x, 0); NaN stays NaN. out may be x. Returns out."""
    _relu(out.reshape(-1), x.reshape(-1))
    return out


@_compile
def _relu_backward(dx, dy, y):
    zero = y.dtype.type(0)
    for i in range(y.size):
        dx[i] = dy[i] if y[i] > zero else zero


@takes(dx="T *", dy="T *", y="T *", writes="dx", same="dx dy")
def relu_backward_into(dx: Array, dy: Array, y: Array) -> Array:
    """dx = dy where the output y > 0, else 0. dx may be dy. Returns dx."""
    _relu_backward(dx.reshape(-1), dy.reshape(-1), y.reshape(-1))
    return dx


@_compile
def _gelu(out, x):
    for i in range(x.size):
        v = np.float64(x[i])
        out[i] = v * 0.5 * (1.0 + math.erf(v * 0.7071067811865476))


@takes(out="T *", x="T *", writes="out", same="out x")
def gelu_into(out: Array, x: Array) -> Array:
    """out = x Phi(x) (Hendrycks & Gimpel, arXiv:1606.08415), not its tanh approximation. out may be x. Returns out."""
    (gelu_f32 if x.dtype == np.float32 else _gelu)(out.reshape(-1), x.reshape(-1))
    return out


@_compile
def _gelu_backward(dx, dy, x):
    for i in range(x.size):
        v = np.float64(x[i])
        slope = 0.5 * (1.0 + math.erf(v * 0.7071067811865476)) + v * math.exp(-0.5 * v * v) * 0.3989422804014327
        dx[i] = dy[i] * slope


@takes(dx="T *", dy="T *", x="T *", writes="dx", same="dx dy")
def gelu_backward_into(dx: Array, dy: Array, x: Array) -> Array:
    """dx = dy (Phi(x) + x phi(x)), where x is gelu's input. dx may be dy. Returns dx."""
    (gelu_backward_f32 if x.dtype == np.float32 else _gelu_backward)(dx.reshape(-1), dy.reshape(-1), x.reshape(-1))
    return dx


@_compile
def _softmax_cross_entropy(dlogits, logits, labels, scale):
    total, correct = 0.0, 0
    for i in range(logits.shape[0]):
        best = 0
        for j in range(logits.shape[1]):
            if logits[i, j] > logits[i, best]:
                best = j
        top = np.float64(logits[i, best])
        z = 0.0
        for j in range(logits.shape[1]):
            z += math.exp(logits[i, j] - top)
        log_z = math.log(z)
        label = labels[i]
        total += log_z - (logits[i, label] - top)
        correct += best == label
        for j in range(logits.shape[1]):
            dlogits[i, j] = (math.exp(logits[i, j] - top - log_z) - (1.0 if j == label else 0.0)) * scale
    return total, correct


@takes(
    dlogits="T b classes",
    logits="T b classes",
    labels="i64 b <classes",
    writes="dlogits",
    where={"classes": "at least one class"},
)
def softmax_cross_entropy_into(dlogits: Array, logits: Array, labels: Array, scale: float) -> tuple[float, int]:
    """Compute softmax, cross-entropy loss and dlogits = scale * gradient, row by row.

    Returns: (sum of the b losses in f64, number of rows whose largest logit is the label's).
    """
    return _softmax_cross_entropy(dlogits, logits, labels, float(scale))


@_compile
def _weighted_softmax_cross_entropy(dlogits, logits, labels, weights, scale):
    total, correct = 0.0, 0
    for i in range(logits.shape[0]):
        row, weight = slice(i, i + 1), weights[labels[i]]
        loss, right = _softmax_cross_entropy(dlogits[row], logits[row], labels[row], scale * weight)
        total += weight * loss
        correct += right
    return total, correct


@takes(
    dlogits="T b classes",
    logits="T b classes",
    labels="i64 b <classes",
    weights="f64 classes",
    writes="dlogits",
    where={"classes": "at least one class"},
)
def weighted_softmax_cross_entropy_into(
    dlogits: Array, logits: Array, labels: Array, weights: Array, scale: float
) -> tuple[float, int]:
    """As softmax_cross_entropy_into, with each row's loss and gradient multiplied by the weight of its label."""
    return _weighted_softmax_cross_entropy(dlogits, logits, labels, weights, float(scale))


@_compile
def _mean_squared_error(dy, y, target, scale):
    total = 0.0
    for i in range(y.shape[0]):
        row = 0.0
        for j in range(y.shape[1]):
            difference = np.float64(y[i, j]) - target[i, j]
            row += difference * difference
            dy[i, j] = 2.0 * difference / y.shape[1] * scale
        total += row / y.shape[1]
    return total, 0


@takes(dy="T b k", y="T b k", target="f32|f64 b k", writes="dy", where={"k": "at least one column"})
def mean_squared_error_into(dy: Array, y: Array, target: Array, scale: float) -> tuple[float, int]:
    """dy = scale * gradient of each row's mean of (y - target)**2. Returns (sum of these means, 0)."""
    return _mean_squared_error(dy, y, target, float(scale))


@_compile
def _im2col(cols, x, kernel, pad):
    n, h, w, c = x.shape
    out_h, out_w = h + 2 * pad - kernel + 1, w + 2 * pad - kernel + 1
    zero = x.dtype.type(0)
    for row in range(n * out_h * out_w):
        image, place = divmod(row, out_h * out_w)
        top, left = place // out_w - pad, place % out_w - pad
        at = 0
        for i in range(top, top + kernel):
            for j in range(left, left + kernel):
                if 0 <= i < h and 0 <= j < w:
                    for k in range(c):
                        cols[row, at + k] = x[image, i, j, k]
                else:
                    for k in range(c):
                        cols[row, at + k] = zero
                at += c


_FIELDS = "T n*(h+2*pad-kernel+1)*(w+2*pad-kernel+1) kernel*kernel*c"
_FIT = {
    "kernel >= 1": "a kernel of at least 1",
    "pad >= 0": "a pad of at least 0",
    "min(h, w) + 2 * pad >= kernel": "padded images at least as large as the kernel",
}


@takes(cols=_FIELDS, x="T n h w c", writes="cols", where=_FIT)
def im2col_into(cols: Array, x: Array, kernel: int, pad: int) -> Array:
    """cols = the receptive field of each output pixel as a row; stride 1. Returns cols."""
    _im2col(cols, x, kernel, pad)
    return cols


@_compile
def _col2im(dx, cols, kernel, pad):
    n, h, w, c = dx.shape
    out_h, out_w = h + 2 * pad - kernel + 1, w + 2 * pad - kernel + 1
    dx[:] = dx.dtype.type(0)
    for row in range(n * out_h * out_w):
        image, place = divmod(row, out_h * out_w)
        top, left = place // out_w - pad, place % out_w - pad
        at = 0
        for i in range(top, top + kernel):
            for j in range(left, left + kernel):
                if 0 <= i < h and 0 <= j < w:
                    for k in range(c):
                        dx[image, i, j, k] += cols[row, at + k]
                at += c


@takes(dx="T n h w c", cols=_FIELDS, writes="dx", where=_FIT)
def col2im_into(dx: Array, cols: Array, kernel: int, pad: int) -> Array:
    """The transpose of im2col_into: dx = the sums over rows at the pixels from which im2col_into reads them. Returns dx."""
    _col2im(dx, cols, kernel, pad)
    return dx


@_compile
def _max_pool(out, winner, x, size):
    n, h, w, c = out.shape
    for image in range(n):
        for i in range(h):
            for j in range(w):
                for k in range(c):
                    out[image, i, j, k] = x[image, i * size, j * size, k]
                    winner[image, i, j, k] = 0
                for at in range(1, size * size):
                    for k in range(c):
                        value = x[image, i * size + at // size, j * size + at % size, k]
                        if value > out[image, i, j, k] or value != value:
                            out[image, i, j, k] = value
                            winner[image, i, j, k] = at


_TILES = "n h//size w//size c"
_TILE = {"1 <= size <= 16": "tiles of 1 to 16 pixels a side"}


@takes(out=f"T {_TILES}", winner=f"u8 {_TILES}", x="T n h w c", writes="out winner", where=_TILE)
def max_pool_into(out: Array, winner: Array, x: Array, size: int) -> Array:
    """out = maximum over size x size tiles; winner = the maximum's index in the flattened tile. Returns out."""
    _max_pool(out, winner, x, size)
    return out


@_compile
def _max_pool_backward(dx, dy, winner, size):
    dx[:] = dx.dtype.type(0)
    n, h, w, c = dy.shape
    for image in range(n):
        for i in range(h):
            for j in range(w):
                for k in range(c):
                    at = winner[image, i, j, k]
                    dx[image, i * size + at // size, j * size + at % size, k] = dy[image, i, j, k]


@takes(dx="T n h w c", dy=f"T {_TILES}", winner=f"u8 {_TILES} <size*size", writes="dx", where=_TILE)
def max_pool_backward_into(dx: Array, dy: Array, winner: Array, size: int) -> Array:
    """dx = dy at each tile's winner, 0 elsewhere. Returns dx."""
    _max_pool_backward(dx, dy, winner, size)
    return dx


# Optimizers: parameters p, gradient g and state are flat; each verb reads and writes every element once.


@_compile
def _sum_of_squares(x):
    # Eight partial sums, so that additions do not wait for each other. The order of additions is fixed.
    partial = np.zeros(8)
    whole = x.size - x.size % 8
    for i in range(0, whole, 8):
        for j in range(8):
            partial[j] += np.float64(x[i + j]) * np.float64(x[i + j])
    for i in range(whole, x.size):
        partial[0] += np.float64(x[i]) * np.float64(x[i])
    return partial.sum()


@takes(x="T n")
def sum_of_squares(x: Array) -> float:
    """The sum of x**2 in f64. It is NaN or infinite exactly when an element of x is, or is beyond 1e154."""
    return float(_sum_of_squares(x))


@_compile
def _sgd(p, g, lr, scale, decay):
    for i in range(p.size):
        p[i] -= lr * (scale * g[i] + decay * p[i])


@takes(p="T n", g="T n", writes="p")
def sgd_into(p: Array, g: Array, lr: float, scale: float, decay: float) -> None:
    """p -= lr (scale g + decay p)."""
    _sgd(p, g, *_scalars(p, lr, scale, decay))


@_compile
def _momentum(p, g, m, lr, mu, scale, decay):
    for i in range(p.size):
        m[i] = mu * m[i] + (scale * g[i] + decay * p[i])
        p[i] -= lr * m[i]


@takes(p="T n", g="T n", m="T n", writes="p m")
def momentum_into(p: Array, g: Array, m: Array, lr: float, mu: float, scale: float, decay: float) -> None:
    """m = mu m + d; p -= lr m, where d = scale g + decay p."""
    _momentum(p, g, m, *_scalars(p, lr, mu, scale, decay))


@_compile
def _nesterov(p, g, m, lr, mu, scale, decay):
    for i in range(p.size):
        gradient = scale * g[i] + decay * p[i]
        m[i] = mu * m[i] + gradient
        p[i] -= lr * (gradient + mu * m[i])


@takes(p="T n", g="T n", m="T n", writes="p m")
def nesterov_into(p: Array, g: Array, m: Array, lr: float, mu: float, scale: float, decay: float) -> None:
    """m = mu m + d; p -= lr (d + mu m), where d = scale g + decay p."""
    _nesterov(p, g, m, *_scalars(p, lr, mu, scale, decay))


@_compile
def _adam(p, g, m, v, lr, beta1, beta2, rest1, rest2, eps, fix1, fix2, scale, coupled, decoupled):
    for i in range(p.size):
        gradient = scale * g[i] + coupled * p[i]
        m[i] = beta1 * m[i] + rest1 * gradient
        v[i] = beta2 * v[i] + rest2 * gradient * gradient
        p[i] -= lr * ((m[i] / fix1) / (np.sqrt(v[i] / fix2) + eps) + decoupled * p[i])


@takes(p="T n", g="T n", m="T n", v="T n", writes="p m v")
def adam_into(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    fix1: float,
    fix2: float,
    scale: float,
    decay: float,
    decoupled: bool,
) -> None:
    """Update p, m and v by Adam, or by AdamW if `decoupled`; fix1 and fix2 are 1 - beta**t at step t, from 1."""
    coupled, apart = (0.0, decay) if decoupled else (decay, 0.0)
    _adam(p, g, m, v, *_scalars(p, lr, beta1, beta2, 1 - beta1, 1 - beta2, eps, fix1, fix2, scale, coupled, apart))


@_compile
def _lamb_direction(u, p, g, m, v, beta1, beta2, rest1, rest2, eps, fix1, fix2, scale, decay):
    for i in range(p.size):
        gradient = scale * g[i]
        m[i] = beta1 * m[i] + rest1 * gradient
        v[i] = beta2 * v[i] + rest2 * gradient * gradient
        u[i] = (m[i] / fix1) / (np.sqrt(v[i] / fix2) + eps) + decay * p[i]


@takes(u="T n", p="T n", g="T n", m="T n", v="T n", writes="u m v")
def lamb_direction_into(
    u: Array,
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    beta1: float,
    beta2: float,
    eps: float,
    fix1: float,
    fix2: float,
    scale: float,
    decay: float,
) -> tuple[float, float]:
    """u = LAMB's update direction for one array. Returns the sums of squares of p and of u."""
    _lamb_direction(u, p, g, m, v, *_scalars(p, beta1, beta2, 1 - beta1, 1 - beta2, eps, fix1, fix2, scale, decay))
    return sum_of_squares(p), sum_of_squares(u)


@_compile
def _lamb_step(p, u, step):
    for i in range(p.size):
        p[i] -= step * u[i]


@takes(p="T n", u="T n", writes="p")
def lamb_step_into(p: Array, u: Array, step: float) -> None:
    """p -= step u."""
    _lamb_step(p, u, *_scalars(p, step))


def _scalars(array, *values):
    return (array.dtype.type(value) for value in values)
