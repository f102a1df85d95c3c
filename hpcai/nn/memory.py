"""Memory for activations and their gradients: what is dropped is used again at once, while it is still in the caches.

An array is free as soon as nobody refers to it. The next one of its size gets the block that was freed last, so a backward pass
writes where its own last layers wrote, not to memory that was last touched a step ago, and a step allocates nothing.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from hpcai.xp import Array

SMALL = 1 << 14
"""Bytes below which numpy's own allocation is quicker."""

_free: dict[int, list[Array]] = {}


class _Lease:
    """Lends a block to the arrays on it; the last of them to go gives it back."""

    __slots__ = ("__array_interface__", "block")

    def __init__(self, block: Array, shape: tuple[int, ...], dtype: np.dtype):
        self.block = block
        self.__array_interface__ = {"shape": shape, "typestr": dtype.str, "data": (block.ctypes.data, False), "version": 3}

    def __del__(self) -> None:
        _free[self.block.nbytes].append(self.block)


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array.

    >>> first = empty((64, 128), np.float32)
    >>> place = first.ctypes.data
    >>> del first
    >>> empty((128, 64), np.float32).ctypes.data == place
    True
    """
    dtype = np.dtype(dtype)
    nbytes = prod(shape) * dtype.itemsize
    if nbytes < SMALL:
        return np.empty(shape, dtype)
    size = 1 << (nbytes - 1).bit_length()
    if nbytes <= size - size // 4:
        size -= size // 4
    blocks = _free.setdefault(size, [])
    return np.asarray(_Lease(blocks.pop() if blocks else _aligned(size), tuple(map(int, shape)), dtype))


def _aligned(size: int) -> Array:
    """A block that begins with a cache line."""
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]
