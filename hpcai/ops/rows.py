"""Row-wise verbs with a C++ kernel for f32, and Numba for the rest. Arrays are (rows, columns)."""

from __future__ import annotations

import numpy as np

from hpcai.ops import fused, native, sequence
from hpcai.ops.native import address
from hpcai.xp import Array


def bias_gelu_into(y: Array, slope: Array, bias: Array) -> Array:
    """y = gelu(y + bias) in place, and slope = gelu's derivative there. bias: (columns,). Returns y."""
    if _by_kernel(y, slope, bias):
        native.kernels().bias_gelu(address(y), address(slope), address(bias), *y.shape)
        return y
    fused.add_bias_into(y, bias)
    fused.gelu_backward_into(slope, np.ones_like(y), y)
    return fused.gelu_into(y, y)


def multiply_and_sum_into(x: Array, by: Array, sums: Array) -> Array:
    """x *= by, and sums = the sums of its columns, (columns,). Returns x."""
    if _by_kernel(x, by, sums):
        native.kernels().multiply_and_sum(address(x), address(by), address(sums), *x.shape)
        return x
    np.multiply(x, by, out=x)
    np.sum(x, axis=0, out=sums)
    return x


def column_sums_into(sums: Array, x: Array) -> Array:
    """sums = the sums of x's columns, (columns,). Returns sums."""
    if _by_kernel(x, sums):
        native.kernels().column_sums(address(sums), address(x), *x.shape)
        return sums
    return np.sum(x, axis=0, out=sums)


def row_max_into(top: Array, x: Array) -> Array:
    """top = the largest of each row, (rows,); of no meaning where one is NaN. Returns top."""
    if _by_kernel(x, top):
        native.kernels().row_max(address(top), address(x), *x.shape)
        return top
    return sequence.row_max_into(top, x)


def exponentials_into(out: Array, sums: Array, picked: Array, x: Array, top: Array, labels: Array, first: int = 0) -> None:
    """out = e**(x - top); sums of its rows; picked = x of the label - top where that is one of these columns, else 0.

    out, x: (rows, columns), column j standing for class first + j; sums, picked: (rows,) f64; labels: (rows,) i64.
    """
    if not _by_kernel(out, x, top):
        sequence.exponentials_into(out, sums, picked, x, top, labels, first)
        return
    native.kernels().row_exponentials(address(out), address(sums), address(x), address(top), *x.shape)
    column = labels - first
    here = (column >= 0) & (column < x.shape[1])
    found = x[np.arange(len(x)), np.where(here, column, 0)].astype(np.float64)
    picked[:] = np.where(here, found - top, 0.0)


def layer_norm_into(y: Array, mean: Array, inverse: Array, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """LayerNorm (Ba et al., arXiv:1607.06450) of each row; without `bias` RMSNorm (Zhang & Sennrich, arXiv:1910.07467).

    y, x: (rows, width); mean, inverse: (rows,); weight, bias: (width,). Writes y, and for backward each row's mean (RMSNorm: 0)
    and what x - mean was multiplied with. Returns y.
    """
    if _by_kernel(y, mean, inverse, x, weight, *_given(bias)):
        places = [address(array) for array in (y, mean, inverse, x, weight)]
        native.kernels().layer_norm(*places, _place(bias), *x.shape, sequence.EPSILON)
        return y
    return sequence.layer_norm_into(y, mean, inverse, x, weight, bias)


def layer_norm_backward_into(
    dx: Array, dy: Array, x: Array, mean: Array, inverse: Array, weight: Array, centred: bool = True
) -> Array:
    """The input's gradient of layer_norm_into; `centred` as it was with a bias. Returns dx."""
    arrays = (dx, dy, x, mean, inverse, weight)
    if _by_kernel(*arrays):
        native.kernels().layer_norm_backward(*(address(array) for array in arrays), centred, *dx.shape)
        return dx
    return sequence.layer_norm_backward_into(dx, dy, x, mean, inverse, weight, centred)


def layer_norm_gradients_into(dweight: Array, dbias: Array | None, dy: Array, x: Array, mean: Array, inverse: Array) -> None:
    """The gradients of weight and bias (None for RMSNorm): sums over rows."""
    if _by_kernel(dy, x, mean, inverse, dweight, *_given(dbias)):
        places = [address(array) for array in (dy, x, mean, inverse)]
        native.kernels().layer_norm_gradients(address(dweight), _place(dbias), *places, *dy.shape)
        return
    sequence.layer_norm_gradients_into(dweight, dbias, dy, x, mean, inverse)


def _given(array: Array | None) -> list[Array]:
    return [] if array is None else [array]


def _place(array: Array | None) -> int:
    return 0 if array is None else address(array)


def _by_kernel(*arrays: Array) -> bool:
    """Whether the kernel serves; what it cannot see itself is checked here: dtypes, and that rows lie one behind the other."""
    if any(not x.flags.c_contiguous or x.dtype != arrays[0].dtype for x in arrays):
        raise ValueError(f"wanted contiguous arrays of one dtype, got {[(x.dtype.name, x.shape) for x in arrays]}")
    columns = arrays[0].shape[-1]
    if any(x.size not in (arrays[0].size, len(arrays[0]), columns) for x in arrays):
        raise ValueError(f"wanted arrays of (rows, columns), a row or a column of them, got {[x.shape for x in arrays]}")
    return native.is_native() and arrays[0].dtype == np.float32
