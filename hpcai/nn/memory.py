"""Memory for activations and their gradients: what is dropped is used again at once, while it is still in the caches.

An array is free as soon as nobody refers to it. The next one of its size gets the block that was freed last, so a backward pass
writes where its own last layers wrote, not to memory that was last touched a step ago, and a step allocates nothing.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from hpcai.xp import Array, bfloat16

SMALL = 1 << 14
"""Bytes below which numpy's own allocation is quicker."""


class _Block(NamedTuple):
    """Memory, where it begins, and the list where it waits."""

    memory: Array
    address: int
    home: list[Any]


_free: dict[int, list[_Block]] = {}

_SPELT = {bfloat16: np.dtype(np.uint16)}
"""What stands in for types that numpy's array interface does not know."""


class _Lease:
    """Lends a block to the arrays on it; the last of them to go gives it back."""

    __slots__ = ("__array_interface__", "block")

    def __init__(self, block: _Block, shape: tuple[int, ...], dtype: np.dtype):
        self.block = block
        self.__array_interface__ = {"shape": shape, "typestr": dtype.str, "data": (block.address, False), "version": 3}

    def __del__(self) -> None:
        self.block.home.append(self.block)


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
    home = _free.setdefault(size, [])
    lease = _Lease(home.pop() if home else _new(size, home), shape, _SPELT.get(dtype, dtype))
    return np.asarray(lease).view(dtype) if dtype in _SPELT else np.asarray(lease)


def _new(size: int, home: list[_Block]) -> _Block:
    """A block that begins with a cache line."""
    memory = np.empty(size + 64, np.uint8)
    return _Block(memory, -(-memory.ctypes.data // 64) * 64, home)
