"""Floats as integers of the same order, so that a maximum of any library propagates NaN and tells signed zeros apart.

The bits of positive floats, read as integers, have the order of the floats; the bits of negative floats have the reverse order.
"""

from __future__ import annotations

import numpy as np

from hpcai.xp import Array


def of_floats(x: Array, op: str) -> Array:
    """Integers whose "max" or "min" corresponds to that of `x` (f32 or f64); NaN wins against all other values.

    >>> of_floats(np.array([0.0, -0.0, 1e-45, -np.inf], np.float32), "max").tolist()
    [0, -1, 1, -2139095041]
    """
    bits = x.view(f"i{x.itemsize}")
    order = np.where(bits < 0, bits ^ np.iinfo(bits.dtype).max, bits)
    limits = np.iinfo(bits.dtype)
    order[np.isnan(x)] = limits.max if op == "max" else limits.min
    return order


def floats_into(out: Array, order: Array) -> Array:
    """out = the floats of these integers, with one and the same NaN for all NaNs."""
    limits = np.iinfo(order.dtype)
    out.view(order.dtype)[...] = np.where(order < 0, order ^ limits.max, order)
    out[(order == limits.max) | (order == limits.min)] = np.nan
    return out
