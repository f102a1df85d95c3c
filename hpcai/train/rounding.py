"""Layers whose outputs and gradients are rounded to 16 bits, for mixed precision (strategies/mixed.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcai import ops
from hpcai.nn import memory
from hpcai.nn.layers import Layer
from hpcai.nn.models import Model
from hpcai.xp import DTYPES, Array

STORAGE = {"f16": np.dtype(DTYPES["f16"]), "bf16": np.dtype(DTYPES["bf16"])}
"""The 16-bit types of --dtype by name; arithmetic with them is in f32."""


def rounding(model: Model, dtype: np.dtype) -> Model:
    """Return the model with the outputs and input gradients of all layers rounded to `dtype`, 16 bits."""
    return model._replace(layers=tuple(_rounding(layer, dtype) for layer in model.layers))


def _rounding(layer: Layer, dtype: np.dtype) -> Layer:
    return layer._replace(forward=_rounded(layer.forward, dtype), backward=_rounded(layer.backward, dtype))


def _rounded(compute: Callable[..., Array], dtype: np.dtype) -> Callable[..., Array]:
    def rounded(params: Any, cache: Any, x: Array) -> Array:
        y = compute(params, cache, x)
        short = ops.cast_into(memory.empty(y.shape, dtype), y)
        return ops.cast_into(y, short)  # in place: a layer may return its input, which is already rounded

    return rounded
