"""The numerical verbs: each has one specification (reference.py) and one fast implementation per device.

Verbs of collectives and codecs are C++ (native.py, blocks.py, integers.py). Verbs that dominate a transformer's time are C++
(attention.py, rows.py) or BLAS (products.py). Other elementwise and row-wise verbs of `nn` and `optim` are Numba (fused.py,
sequence.py). A verb's implementation is loaded at its first use, so that importing hpcai starts no compiler. Each verb declares
its arguments, and rejects others before it computes anything (door.py).
"""

from __future__ import annotations

import importlib
from typing import Any

_NATIVE = (
    "fold_into",
    "cast_into",
    "cast_keeping_into",
    "widen_scaled_into",
    "divide_into",
    "is_native",
    "lanes",
)
_PRODUCTS = ("matmul_into",)
_FUSED = (
    "gather_into",
    "add_bias_into",
    "relu_into",
    "relu_backward_into",
    "gelu_into",
    "gelu_backward_into",
    "softmax_cross_entropy_into",
    "weighted_softmax_cross_entropy_into",
    "mean_squared_error_into",
    "im2col_into",
    "col2im_into",
    "max_pool_into",
    "max_pool_backward_into",
    "sum_of_squares",
    "sgd_into",
    "momentum_into",
    "nesterov_into",
    "adam_into",
    "lamb_direction_into",
    "lamb_step_into",
)
_SEQUENCE = (
    "embed_into",
    "embed_gradients_into",
    "dropout_into",
    "cross_entropy_backward_into",
)
_ROWS = (
    "bias_gelu_into",
    "multiply_and_sum_into",
    "column_sums_into",
    "row_max_into",
    "exponentials_into",
    "layer_norm_into",
    "layer_norm_backward_into",
    "layer_norm_gradients_into",
)
_ATTENTION = ("attention_into", "attention_backward_into")
_BLOCKS = (
    "encode_blocks_into",
    "decode_blocks_into",
    "add_blocks_into",
    "select_above",
    "scatter_add_into",
    "scatter_zero_into",
    "block_count",
    "packed_bytes",
    "BLOCK",
)
_HOME = dict.fromkeys(_NATIVE, "hpcai.ops.native") | dict.fromkeys(_FUSED, "hpcai.ops.fused")
_HOME |= dict.fromkeys(_SEQUENCE, "hpcai.ops.sequence") | dict.fromkeys(_BLOCKS, "hpcai.ops.blocks")
_HOME |= (
    dict.fromkeys(_PRODUCTS, "hpcai.ops.products")
    | dict.fromkeys(_ROWS, "hpcai.ops.rows")
    | dict.fromkeys(_ATTENTION, "hpcai.ops.attention")
)
__all__ = [*_NATIVE, *_PRODUCTS, *_FUSED, *_SEQUENCE, *_ROWS, *_ATTENTION, *_BLOCKS]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hpcai.ops' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
