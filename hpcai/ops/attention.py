"""Causal self-attention: a C++ kernel for f32; for f64 numpy, with the whole matrix of probabilities.

x: (rows, 3 * width), the queries, keys and values of each row, heads side by side. y: (rows, width). norms: (sequences, heads,
context), the logarithm of the sum of exponentials of a query's scores, from which backward computes the probabilities again.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from hpcai.ops import native
from hpcai.ops.door import takes
from hpcai.xp import Array, namespace

_FIT = {
    "rows == sequences * context": "as many rows as sequences times context",
    "min(heads, context) >= 1 and width >= heads and width % heads == 0": "heads and context from 1, a width divisible by heads",
}


@takes(y="T rows width", norms="T sequences heads context", x="T rows 3*width", writes="y norms", where=_FIT)
def attention_into(y: Array, norms: Array, x: Array, heads: int) -> Array:
    """y = softmax(q k^T / sqrt(width / heads)) v for each head; a query sees only keys up to its own position. Returns y."""
    context, width = norms.shape[2], x.shape[1] // (3 * heads)
    if _by_kernel(x):
        native.kernels().attention(*map(native.address, (y, norms, x)), len(norms), context, heads, width, 1 / sqrt(width))
        return y
    q, k, v = _parts(x, heads, context)
    scores = _scores(q, k)
    top = scores.max(3, initial=-np.inf)
    norms[...] = top + np.log(np.exp(scores - top[..., None]).sum(3))
    _by_head(y, heads, context)[...] = namespace(x).matmul(np.exp(scores - norms[..., None]), v)
    return y


@takes(
    dx="T rows 3*width",
    dy="T rows width",
    y="T rows width",
    norms="T sequences heads context",
    x="T rows 3*width",
    writes="dx",
    where=_FIT,
)
def attention_backward_into(dx: Array, dy: Array, y: Array, norms: Array, x: Array, heads: int) -> Array:
    """dx = the gradient of x, from dy = the gradient of y and the arrays of attention_into. Returns dx."""
    context, width = norms.shape[2], x.shape[1] // (3 * heads)
    if _by_kernel(x):
        arrays = map(native.address, (dx, dy, y, norms, x))
        native.kernels().attention_backward(*arrays, len(norms), context, heads, width, 1 / sqrt(width))
        return dx
    xp, (q, k, v), (dq, dk, dv) = namespace(x), _parts(x, heads, context), _parts(dx, heads, context)
    p, by_head = xp.exp(_scores(q, k) - norms[..., None]), _by_head(dy, heads, context)
    dv[...] = xp.matmul(p.swapaxes(2, 3), by_head)
    along = (by_head * _by_head(y, heads, context)).sum(3, keepdims=True)
    ds = p * (xp.matmul(by_head, v.swapaxes(2, 3)) - along) / sqrt(width)
    dq[...] = xp.matmul(ds, k)
    dk[...] = xp.matmul(ds.swapaxes(2, 3), q)
    return dx


def _by_kernel(x: Array) -> bool:
    return native.is_native() and x.dtype == np.float32


def _parts(x: Array, heads: int, context: int) -> Array:
    """Views of queries, keys and values: (3, sequences, heads, context, width / heads)."""
    return (
        x.reshape(len(x) // context, context, 3, heads, -1).transpose(2, 0, 3, 1, 4)
        if x.size
        else np.empty((3, 0, heads, context, 1))
    )


def _by_head(y: Array, heads: int, context: int) -> Array:
    return y.reshape(len(y) // context, context, heads, -1).transpose(0, 2, 1, 3) if y.size else np.empty((0, heads, context, 1))


def _scores(q: Array, k: Array) -> Array:
    scores = namespace(q).matmul(q, k.swapaxes(2, 3)) / sqrt(q.shape[-1])
    future = np.triu(np.ones(scores.shape[2:], bool), 1)
    scores[..., future] = -np.inf
    return scores
