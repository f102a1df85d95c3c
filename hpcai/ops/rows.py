"""Row-wise verbs: C++ kernels for f32; Numba or numpy for f64. Arrays are (rows, columns)."""

from __future__ import annotations

import numpy as np

from hpcai.ops import fused, native, sequence
from hpcai.ops.door import takes
from hpcai.ops.native import address
from hpcai.xp import Array


@takes(y="T rows columns", slope="T rows columns", bias="T columns", writes="y slope")
def bias_gelu_into(y: Array, slope: Array, bias: Array) -> Array:
    """y = gelu(y + bias) in place, and slope = the derivative of gelu at y + bias. Returns y."""
    if _by_kernel(y):
        native.kernels().bias_gelu(address(y), address(slope), address(bias), *y.shape)
        return y
    fused.add_bias_into(y, bias)
    fused.gelu_backward_into(slope, np.ones_like(y), y)
    return fused.gelu_into(y, y)


@takes(x="T rows columns", by="T rows columns", sums="T columns", writes="x sums")
def multiply_and_sum_into(x: Array, by: Array, sums: Array) -> Array:
    """x *= by, and sums = the sums of the new x's columns. Returns x."""
    if _by_kernel(x):
        native.kernels().multiply_and_sum(address(x), address(by), address(sums), *x.shape)
        return x
    np.multiply(x, by, out=x)
    np.sum(x, axis=0, out=sums)
    return x


@takes(sums="T columns", x="T rows columns", writes="sums")
def column_sums_into(sums: Array, x: Array) -> Array:
    """sums = the sums of x's columns. Returns sums."""
    if _by_kernel(x):
        native.kernels().column_sums(address(sums), address(x), *x.shape)
        return sums
    return np.sum(x, axis=0, out=sums)


@takes(top="T rows", x="T rows columns", writes="top", where={"columns": "at least one column"})
def row_max_into(top: Array, x: Array) -> Array:
    """top = the largest element of each row; undefined for a row with NaN. Returns top."""
    if _by_kernel(x):
        native.kernels().row_max(address(top), address(x), *x.shape)
        return top
    return sequence.row_max_into(top, x)


@takes(
    out="T rows columns",
    sums="f64 rows",
    picked="f64 rows",
    x="T rows columns",
    top="T rows",
    labels="i64 rows",
    writes="out sums picked",
    where={"first >= 0": "a first class of at least 0", "columns": "at least one column"},
)
def exponentials_into(out: Array, sums: Array, picked: Array, x: Array, top: Array, labels: Array, first: int = 0) -> None:
    """out = e**(x - top); sums = row sums of out; picked = x[label] - top if the label is one of these columns, else 0.

    Column j stands for class first + j.
    """
    if not _by_kernel(x):
        sequence.exponentials_into(out, sums, picked, x, top, labels, first)
        return
    native.kernels().row_exponentials(address(out), address(sums), address(x), address(top), *x.shape)
    column = labels - first
    here = (column >= 0) & (column < x.shape[1])
    found = x[np.arange(len(x)), np.where(here, column, 0)].astype(np.float64)
    picked[:] = np.where(here, found - top, 0.0)


@takes(
    y="T rows width",
    mean="T rows",
    inverse="T rows",
    x="T rows width",
    weight="T width",
    bias="T width",
    writes="y mean inverse",
    where={"width": "at least one column"},
)
def layer_norm_into(y: Array, mean: Array, inverse: Array, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """y = LayerNorm (Ba et al., arXiv:1607.06450) of each row; without `bias` RMSNorm (Zhang & Sennrich, arXiv:1910.07467).

    For backward, mean = each row's mean (RMSNorm: 0), and inverse = the factor of x - mean. Returns y.
    """
    if _by_kernel(x):
        places = [address(array) for array in (y, mean, inverse, x, weight)]
        native.kernels().layer_norm(*places, _place(bias), *x.shape, sequence.EPSILON)
        return y
    return sequence.layer_norm_into(y, mean, inverse, x, weight, bias)


@takes(
    dx="T rows width",
    dy="T rows width",
    x="T rows width",
    mean="T rows",
    inverse="T rows",
    weight="T width",
    writes="dx",
    where={"width": "at least one column"},
)
def layer_norm_backward_into(
    dx: Array, dy: Array, x: Array, mean: Array, inverse: Array, weight: Array, centred: bool = True
) -> Array:
    """dx = the gradient of layer_norm_into's input; centred: whether layer_norm_into had a bias. Returns dx."""
    if _by_kernel(x):
        native.kernels().layer_norm_backward(*map(address, (dx, dy, x, mean, inverse, weight)), centred, *dx.shape)
        return dx
    return sequence.layer_norm_backward_into(dx, dy, x, mean, inverse, weight, centred)


@takes(
    dweight="T width",
    dbias="T width",
    dy="T rows width",
    x="T rows width",
    mean="T rows",
    inverse="T rows",
    writes="dweight dbias",
)
def layer_norm_gradients_into(dweight: Array, dbias: Array | None, dy: Array, x: Array, mean: Array, inverse: Array) -> None:
    """Write the gradients of weight and bias (None for RMSNorm), summed over rows."""
    if _by_kernel(x):
        places = [address(array) for array in (dy, x, mean, inverse)]
        native.kernels().layer_norm_gradients(address(dweight), _place(dbias), *places, *dy.shape)
        return
    sequence.layer_norm_gradients_into(dweight, dbias, dy, x, mean, inverse)


def _place(array: Array | None) -> int:
    return 0 if array is None else address(array)


def _by_kernel(x: Array) -> bool:
    return native.is_native() and x.dtype == np.float32
