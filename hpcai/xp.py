"""The library that an array belongs to. The core asks the array; it has no `if gpu`."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""An array of numpy, or of cupy, which has the same methods; type checkers see numpy's."""

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float8 = np.dtype(ml_dtypes.float8_e4m3fn)

DTYPES: dict[str, np.dtype] = {
    "f16": np.dtype(np.float16),
    "bf16": bfloat16,
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
}
"""The element types that collectives and kernels support, by their short names."""

CODES: dict[np.dtype, int] = {dtype: code for code, dtype in enumerate(DTYPES.values())}
"""The number of each element type, the same as in `Type` of kernels/cpu/fold.hpp."""


def namespace(x: Array) -> Any:
    """The module that made `x`: numpy, or cupy when it is loaded and `x` is its own."""
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def accumulation_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype in which values of `dtype` are summed: f32 for 16-bit floats, else the same."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype
