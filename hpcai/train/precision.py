"""Mixed precision: parameters, gradients and activations in 16 bits, arithmetic and a master copy of the parameters in f32.

A path to the same results as on hardware with 16-bit units, not to speed: here values are rounded to 16 bits where such hardware
would keep them in 16 bits, and gradients and gathered parameters travel so. Source: Micikevicius et al., arXiv:1710.03740.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcai import ops
from hpcai.errors import NonFiniteError
from hpcai.nn import memory
from hpcai.nn.layers import Layer
from hpcai.nn.models import Model
from hpcai.xp import DTYPES, Array

STORAGE = {"f16": np.dtype(DTYPES["f16"]), "bf16": np.dtype(DTYPES["bf16"])}
"""The values of --dtype that mean 16 bits beside f32."""

FIRST_SCALE, GROW_AFTER = 2.0**15, 1000
"""f16's gradients are scaled up by so much at first; twice as much after so many steps without overflow, half after one."""


@dataclass
class Half:
    """16-bit parameters (of all this rank's layers, or with ZeRO-3 its shard), their values in f32 for arithmetic (with ZeRO-3
    none), and the scale of the loss.
    """

    stored: Array
    computed: Array | None
    scale: float
    good: int = 0

    def settle(self, finite: bool, step: int) -> bool:
        """Adapt f16's scale after a step; True if its gradients can be used. bf16, whose range is f32's, has scale 1 for good."""
        if self.stored.dtype != STORAGE["f16"]:
            return True
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale /= 2
            if self.scale < 2.0**-14:
                raise NonFiniteError(
                    f"gradients in f16 overflow however small the loss is scaled, in step {step + 1}; try --dtype bf16"
                )
        elif self.good == GROW_AFTER:
            self.scale, self.good = min(2 * self.scale, 2.0**24), 0
        return finite


def half(stored: Array, whole: bool) -> Half:
    """For fresh 16-bit parameters."""
    first = FIRST_SCALE if stored.dtype == STORAGE["f16"] else 1.0
    return Half(stored, np.empty(stored.size, np.float32) if whole else None, first)


def rounding(model: Model, dtype: np.dtype) -> Model:
    """The model with every layer's output and input gradient rounded to 16 bits."""
    return model._replace(layers=tuple(_rounding(layer, dtype) for layer in model.layers))


def _rounding(layer: Layer, dtype: np.dtype) -> Layer:
    return layer._replace(forward=_rounded(layer.forward, dtype), backward=_rounded(layer.backward, dtype))


def _rounded(compute: Callable[..., Array], dtype: np.dtype) -> Callable[..., Array]:
    def rounded(params: Any, cache: Any, x: Array) -> Array:
        y = compute(params, cache, x)
        short = ops.cast_into(memory.empty(y.shape, dtype), y)
        return ops.cast_into(y, short)  # in place: what passes through unchanged is rounded already

    return rounded
