"""Memory for activations and their gradients: a freed block is used again at once, while it is still in the CPU's caches.

An array's block is free as soon as nothing refers to the array. The next array of that size gets the block that was freed last.
So a backward pass writes where its own last layers wrote, not to memory last touched a step ago, and a step allocates nothing.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from hpcai.xp import Array, bfloat16

SMALL = 1 << 14
"""Bytes; numpy's own allocation is faster below this size."""


class _Block(NamedTuple):
    """Memory, the address of its first used byte, and the list of free blocks to which it returns."""

    memory: Array
    address: int
    home: list[Any]


_free: dict[int, list[_Block]] = {}

_SPELT = {bfloat16: np.dtype(np.uint16)}
"""Dtype that numpy's array interface does not know -> the dtype that replaces it there."""


class _Lease:
    """Keeps a block in use while arrays on it exist; the end of the last array returns the block."""

    __slots__ = ("__array_interface__", "block")

    def __init__(self, block: _Block, shape: tuple[int, ...], dtype: np.dtype):
        self.block = block
        self.__array_interface__ = {"shape": shape, "typestr": dtype.str, "data": (block.address, False), "version": 3}

    def __del__(self) -> None:
        self.block.home.append(self.block)


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised array.

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
    """Return a new block, aligned to a cache line (64 bytes)."""
    memory = np.empty(size + 64, np.uint8)
    return _Block(memory, -(-memory.ctypes.data // 64) * 64, home)
