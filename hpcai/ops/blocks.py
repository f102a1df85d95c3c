"""The codecs' kernels behind their verbs, with checked arguments; where the kernels are not built, numpy's reference runs.

A *block* is 256 neighbouring elements of a flat f32 array; the last block may be shorter. A block has one f32 scale, and each
element has a level of a few bits: value = scale * level.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from hpcai.ops import blocks_reference, native
from hpcai.ops.door import U32, takes
from hpcai.xp import Array

BLOCK = blocks_reference.BLOCK
FORMATS = {"int8": 8, "int4": 4, "fp8": 8, "sign": 1}
"""Bits of a level. int8: -127..127; int4: -7..7; fp8: e4m3; sign: +1 or -1, with the block's mean magnitude as scale."""

_kept = threading.local()
_NOTHING = np.empty(0, np.uint32)


def block_count(n: int) -> int:
    """The number of blocks in an array of n elements."""
    return -(-n // BLOCK)


def packed_bytes(n: int, form: str) -> int:
    """The bytes that the levels of n elements take."""
    return -(-n * FORMATS[form] // 8)


_FORM = {"form in FORMATS": f"form to be one of {', '.join(FORMATS)}"}


@takes(
    scales="f32 block_count(n)",
    packed="u8 packed_bytes(n,form)",
    x="f32 n",
    memory="f32 n",
    writes="scales packed memory",
    where=_FORM,
)
def encode_blocks_into(
    scales: Array, packed: Array, x: Array, form: str, memory: Array | None = None, key: U32 | None = None
) -> int:
    """Write the scales and levels of x, or of x + memory; the memory then becomes the difference to the decoded values.

    Args:   key: None rounds to nearest even; a number below 2**32 rounds at random, by a generator of (key, index).
    Returns: the number of blocks with values that are not finite. Such values decode to NaN (sign: the whole block does).
    Cost:   int8 with memory: reads 8 bytes and writes 5 bytes an element, and writes a scale a block.
    """
    kernels: Any = native.kernels()
    if kernels is None:
        return blocks_reference.encode_blocks_into(scales, packed, x, form, memory, key)
    kept = 0 if memory is None else native.address(memory)
    number, stochastic = list(FORMATS).index(form), key is not None
    return kernels.encode_blocks(
        number, native.address(x), kept, x.size, native.address(scales), native.address(packed), stochastic, key or 0
    )


@takes(out="f32 n", scales="f32 block_count(n)", packed="u8 packed_bytes(n,form)", writes="out", where=_FORM)
def decode_blocks_into(out: Array, scales: Array, packed: Array, form: str, weight: float = 1.0) -> Array:
    """out = weight * decoded values. Shapes as in `encode_blocks_into`. Returns out."""
    return _decode(out, scales, packed, form, weight, add=False)


@takes(acc="f32 n", scales="f32 block_count(n)", packed="u8 packed_bytes(n,form)", writes="acc", where=_FORM)
def add_blocks_into(acc: Array, scales: Array, packed: Array, form: str, weight: float = 1.0) -> Array:
    """acc += weight * decoded values. Shapes as in `encode_blocks_into`. Returns acc."""
    return _decode(acc, scales, packed, form, weight, add=True)


def _decode(out: Array, scales: Array, packed: Array, form: str, weight: float, add: bool) -> Array:
    kernels: Any = native.kernels()
    if kernels is None:
        return blocks_reference.decode_blocks_into(out, scales, packed, form, weight, add)
    number = list(FORMATS).index(form)
    kernels.decode_blocks(number, add, native.address(out), out.size, native.address(scales), native.address(packed), weight)
    return out


@takes(
    x="f32 n",
    memory="f32 n",
    writes="memory",
    where={"threshold > 0": "a threshold above 0", "0 <= room": "room of at least 0", "n < 2**32": "fewer than 2**32 elements"},
)
def select_above(x: Array, threshold: float, room: int, memory: Array | None = None) -> tuple[Array, Array, int]:
    """Return the indices (u32, ascending) and values (f32) of the elements with |x| >= threshold > 0, and their number.

    With a memory, (n,) f32, memory += x in the same pass, and elements of that sum are selected.

    At most the first `room` elements are returned, in memory that this thread's next call overwrites. NaN counts as infinite.
    """
    kernels: Any = native.kernels()
    if kernels is None:
        return blocks_reference.select_above(x, threshold, room, memory)
    index, value = getattr(_kept, "selected", (_NOTHING, _NOTHING))
    if index.size < room:
        index, value = _kept.selected = np.empty(room, np.uint32), np.empty(room, np.float32)
    bits = int(np.float32(threshold).view(np.uint32))
    kept = 0 if memory is None else native.address(memory)
    found = kernels.select_above(native.address(x), kept, x.size, bits, room, native.address(index), native.address(value))
    return index[: min(found, room)], value[: min(found, room)], found


@takes(acc="f32 n", index="u32 k <n", value="f32 k", writes="acc")
def scatter_add_into(acc: Array, index: Array, value: Array, weight: float = 1.0) -> Array:
    """acc[index] += weight * value; each index may occur once. Returns acc."""
    return _scatter(acc, index, value, weight)


@takes(out="f32 n", index="u32 k <n", writes="out")
def scatter_zero_into(out: Array, index: Array) -> Array:
    """out[index] = 0. Returns out."""
    return _scatter(out, index, None, 0.0)


def _scatter(out: Array, index: Array, value: Array | None, weight: float) -> Array:
    kernels: Any = native.kernels()
    if kernels is None:
        out[index] = 0 if value is None else out[index] + np.float32(weight) * value
        return out
    values = 0 if value is None else native.address(value)
    adding = value is not None
    kernels.scatter(adding, native.address(out), native.address(index), values, index.size, weight)
    return out
