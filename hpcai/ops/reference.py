"""The verbs in a few lines of numpy each. Tests compare the fast implementations with these, bit for bit where the order of
operations is fixed. The declarations in native.py and fused.py give shapes and dtypes.
"""

from __future__ import annotations

import numpy as np

from hpcai.xp import Array, namespace


def fold_into(acc, x, op):
    """acc = acc OP x; an x of 16 bits is widened first."""
    xp = namespace(acc)
    verb = {"sum": xp.add, "max": xp.maximum, "min": xp.minimum}[op]
    with np.errstate(all="ignore"):
        return verb(acc, x.astype(acc.dtype, copy=False), out=acc)


def cast_into(out, x):
    """out = x, rounded to nearest even."""
    with np.errstate(all="ignore"):
        out[...] = x.astype(out.dtype)
    return out


def cast_keeping_into(out, x, memory):
    """out = x + memory in 16 bits; memory = x + memory - out."""
    with np.errstate(all="ignore"):
        memory += x
        out[:] = memory
        memory -= out.astype(np.float32)
    return out


def widen_scaled_into(out, x, weight, add):
    """out = weight * x, or out += weight * x if `add`."""
    with np.errstate(all="ignore"):
        value = np.float32(weight) * x.astype(np.float32)
        out[:] = out + value if add else value
    return out


def divide_into(x, divisor):
    """x = x / divisor; integers truncate towards zero."""
    if x.dtype.kind == "f":
        return np.divide(x, x.dtype.type(divisor), out=x)
    x -= np.fmod(x, divisor)
    x //= divisor
    return x


def gather_into(out, rows, index, scale, shift):
    """out[i] = rows[index[i]] * scale + shift."""
    out[...] = rows[index].astype(out.dtype) * out.dtype.type(scale) + out.dtype.type(shift)
    return out


def relu_into(out, x):
    """out = max(x, 0)."""
    return np.maximum(x, 0, out=out)


def relu_backward_into(dx, dy, y):
    """dx = dy where y > 0, else 0."""
    dx[...] = np.where(y > 0, dy, 0)
    return dx


def _erf(x):
    from math import erf

    return np.vectorize(erf, otypes=[np.float64])(x)


def gelu_into(out, x):
    """out = x * Phi(x), Phi the normal distribution function."""
    out[...] = x * 0.5 * (1 + _erf(x / np.sqrt(2.0)))
    return out


def gelu_backward_into(dx, dy, x):
    """dx = dy * (Phi(x) + x * phi(x))."""
    wide = x.astype(np.float64)
    dx[...] = dy * (0.5 * (1 + _erf(wide / np.sqrt(2.0))) + wide * np.exp(-0.5 * wide**2) / np.sqrt(2 * np.pi))
    return dx


def softmax_cross_entropy_into(dlogits, logits, labels, scale):
    """dlogits = (softmax(logits) - onehot(labels)) * scale; returns the sum of the losses and the count of correct rows."""
    wide = logits.astype(np.float64)
    log_z = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1)
    p = np.exp(wide - log_z[:, None])
    rows = np.arange(len(labels))
    loss = log_z - wide[rows, labels]
    p[rows, labels] -= 1
    dlogits[...] = p * scale
    return float(loss.sum()), int((logits.argmax(1) == labels).sum())


def weighted_softmax_cross_entropy_into(dlogits, logits, labels, weights, scale):
    """As softmax_cross_entropy_into, with row i's loss and gradient multiplied by weights[labels[i]]."""
    wide, rows = logits.astype(np.float64), np.arange(len(labels))
    log_z = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1)
    _, correct = softmax_cross_entropy_into(dlogits, logits, labels, 1.0)
    dlogits *= (weights[labels] * scale)[:, None]
    return float((weights[labels] * (log_z - wide[rows, labels])).sum()), correct


def mean_squared_error_into(dy, y, target, scale):
    """dy = 2 (y - target) / columns * scale; returns the sum over rows of the mean squared error, and 0."""
    difference = y.astype(np.float64) - target
    dy[...] = 2 * difference / y.shape[1] * scale
    return float((difference**2).mean(1).sum()), 0


def im2col_into(cols, x, kernel, pad):
    """cols = the receptive field of each output pixel as a row: (pixels, kernel*kernel*c) from x (n, h, w, c)."""
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    fields = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    cols[...] = fields.transpose(0, 1, 2, 4, 5, 3).reshape(cols.shape)
    return cols


def col2im_into(dx, cols, kernel, pad):
    """The transpose of im2col_into: dx = the sums over rows at the pixels from which im2col_into reads them."""
    n, h, w, c = dx.shape
    out_h, out_w = h + 2 * pad - kernel + 1, w + 2 * pad - kernel + 1
    padded = np.zeros((n, h + 2 * pad, w + 2 * pad, c), dx.dtype)
    fields = cols.reshape(n, out_h, out_w, kernel, kernel, c)
    for i in range(kernel):
        for j in range(kernel):
            padded[:, i : i + out_h, j : j + out_w] += fields[:, :, :, i, j]
    dx[...] = padded[:, pad : pad + h, pad : pad + w]
    return dx


def max_pool_into(out, winner, x, size):
    """out = maximum over size x size tiles of x (n, h, w, c); winner = the index of the (first) maximum in the tile."""
    n, h, w, c = out.shape
    tiles = x[:, : h * size, : w * size].reshape(n, h, size, w, size, c).transpose(0, 1, 3, 5, 2, 4)
    tiles = tiles.reshape(n, h, w, c, size * size)
    winner[...] = tiles.argmax(-1)
    out[...] = tiles.max(-1)
    return out


def max_pool_backward_into(dx, dy, winner, size):
    """dx = dy at each tile's winner, 0 elsewhere."""
    n, h, w, c = dy.shape
    tiles = np.zeros((n, h, w, c, size * size), dx.dtype)
    np.put_along_axis(tiles, winner[..., None].astype(np.int64), dy[..., None], -1)
    dx[...] = 0
    tiles = tiles.reshape(n, h, w, c, size, size).transpose(0, 1, 4, 2, 5, 3)
    dx[:, : h * size, : w * size] = tiles.reshape(n, h * size, w * size, c)
    return dx


def add_bias_into(y, bias):
    """y = y + bias, bias added to every row."""
    y += bias
    return y


def sum_of_squares(x: Array) -> float:
    """The sum of x**2 in f64."""
    return float(np.square(x.astype(np.float64)).sum())


def sgd_into(p, g, lr, scale, decay):
    """p = p - lr (scale g + decay p)."""
    p -= lr * (scale * g + decay * p)


def momentum_into(p, g, m, lr, mu, scale, decay):
    """m = mu m + d; p = p - lr m, where d = scale g + decay p."""
    m[...] = mu * m + (scale * g + decay * p)
    p -= lr * m


def nesterov_into(p, g, m, lr, mu, scale, decay):
    """m = mu m + d; p = p - lr (d + mu m), where d = scale g + decay p."""
    g = scale * g + decay * p
    m[...] = mu * m + g
    p -= lr * (g + mu * m)


def adam_into(p, g, m, v, lr, beta1, beta2, eps, fix1, fix2, scale, decay, decoupled):
    """Update p, m and v by Adam, or by AdamW if `decoupled`; fix1 and fix2 are 1 - beta**t at step t, from 1."""
    g = scale * g if decoupled else scale * g + decay * p
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    p -= lr * ((m / fix1) / (np.sqrt(v / fix2) + eps) + (decay * p if decoupled else 0))


def lamb_direction_into(u, p, g, m, v, beta1, beta2, eps, fix1, fix2, scale, decay):
    """u = LAMB's update direction for one array. Returns the sums of squares of p and of u."""
    g = scale * g
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    u[...] = (m / fix1) / (np.sqrt(v / fix2) + eps) + decay * p
    return sum_of_squares(p), sum_of_squares(u)


def lamb_step_into(p, u, step):
    """p = p - step u."""
    p -= step * u
