"""One flat buffer, named views, buckets as slices.

Parameters, gradients and each array of optimizer state are flat and share one `Layout`. A layer's weight is a view, a bucket
is a slice, so there is no pack and no unpack between backward, the wire and the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import numpy as np

from hpcai.xp import Array

ALIGN = 16
"""Every view starts at a multiple of this many elements (64 bytes of f32): one cache line, one vector."""


class Slot(NamedTuple):
    """The offset, size and shape of one named array in a flat buffer, in elements."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Layout(NamedTuple):
    """The order and place of all named arrays; `size` counts elements with the gaps that alignment leaves."""

    slots: tuple[Slot, ...]
    size: int


def layout(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Place arrays of these shapes one behind the other, in the order given.

    >>> layout({"weight": (3, 2), "bias": (2,)})
    Layout(slots=(Slot(name='weight', shape=(3, 2), start=0, stop=6), Slot(name='bias', shape=(2,), start=16, stop=18)), size=32)
    """
    slots, end = [], 0
    for name, shape in shapes.items():
        count = int(np.prod(shape, dtype=np.int64))
        slots.append(Slot(name, tuple(shape), end, end + count))
        end += -(-count // ALIGN) * ALIGN
    return Layout(tuple(slots), end)


def views(flat: Array, where: Layout) -> dict[str, Array]:
    """Named views of `flat`, which has shape `(where.size,)`; they share its memory."""
    return {slot.name: flat[slot.start : slot.stop].reshape(slot.shape) for slot in where.slots}


def buckets(where: Layout, itemsize: int, bucket_bytes: int, whole: Callable[[str], Hashable] = lambda name: name) -> list[slice]:
    """Cut the flat buffer into contiguous slices, the last first, since backward fills the buffer from its end.

    A slice ends with the array by which it reaches `bucket_bytes`. The slices cover `[0, size)` once.

    Args:   itemsize: bytes of an element.
            whole: maps the name of an array to its group; neighbours of the same group stay in one slice.

    >>> buckets(layout({"a": (32,), "b": (16,), "c": (16,)}), itemsize=4, bucket_bytes=128)
    [slice(32, 64, None), slice(0, 32, None)]
    """
    cuts, stop = [], where.size
    names = [None, *(whole(slot.name) for slot in where.slots)]
    for i, slot in reversed(list(enumerate(where.slots))):
        full = (stop - slot.start) * itemsize >= bucket_bytes and names[i] != names[i + 1]
        if full or (i == 0 and stop > 0):
            cuts.append(slice(slot.start, stop))
            stop = slot.start
    return cuts


def gaps(where: Layout) -> list[slice]:
    """The slices that alignment leaves between arrays, whose elements belong to no array.

    >>> gaps(layout({"weight": (3, 2), "bias": (16,)}))
    [slice(6, 16, None)]
    """
    ends = [*(slot.start for slot in where.slots[1:]), where.size]
    return [slice(slot.stop, end) for slot, end in zip(where.slots, ends, strict=False) if slot.stop < end]


def named_slot(where: Layout, index: int) -> str:
    """The name of the array that holds element `index` of the flat buffer."""
    return next(slot.name for slot in reversed(where.slots) if slot.start <= index)
