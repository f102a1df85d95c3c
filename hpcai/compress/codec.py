"""The protocol of a codec: functions and visible state.

Two functions are enough for one of your own; the rest has defaults:

>>> def encode(x, state):
...     return (np.round(x, 1),), state
>>> def decode(payload, n):
...     return payload[0]
>>> rounding = Codec("one decimal", encode, decode)
>>> memory = np.zeros(2, np.float32)
>>> payload, _ = encode_keeping(rounding, np.float32([0.26, 1.0]), memory, None)
>>> payload[0].tolist(), memory.round(2).tolist()
([0.30000001192092896, 1.0], [-0.03999999910593033, 0.0])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hpcai.errors import counted
from hpcai.ops import door
from hpcai.xp import Array

Payload = tuple[Array, ...]
"""What travels: contiguous arrays, whose shapes and dtypes depend on n alone."""

State = Any


def stateless(x: Array) -> State:
    """The state of a codec that has none."""
    return None


class Codec(NamedTuple):
    """A codec: it encodes an array in fewer bytes.

    encode(x, state) -> (payload, state): x is flat f32 and stays as it is. decode(payload, n) -> (n,) f32.
    init(x) -> the state for arrays like x. summable: the sum over ranks of the payload's first array decodes to the sum of
    what each decodes to, and the payload's other arrays are the same on all ranks.

    keep(x, memory, state) -> (payload, state) encodes x + memory and leaves in the memory what the payload does not say, in one
    pass; add(acc, payload, weight) adds weight times what the payload decodes to, put(out, payload, weight) writes it. Where a
    codec has none, encode and decode serve. cut: an array may be cut at multiples of so many elements and its parts encoded one
    by one, with the same result but for random rounding (0: it may not).
    """

    name: str
    encode: Callable[[Array, State], tuple[Payload, State]]
    decode: Callable[[Payload, int], Array]
    init: Callable[[Array], State] = stateless
    summable: bool = False
    keep: Callable[[Array, Array, State], tuple[Payload, State]] | None = None
    add: Callable[[Array, Payload, float], Array] | None = None
    put: Callable[[Array, Payload, float], Array] | None = None
    cut: int = 0


def encode_keeping(codec: Codec, x: Array, memory: Array, state: State) -> tuple[Payload, State]:
    """The payload of x + memory; the memory becomes what it does not say."""
    if codec.keep is not None:
        return codec.keep(x, memory, state)
    memory += x
    payload, state = codec.encode(memory, state)
    memory -= codec.decode(payload, x.size)
    return payload, state


def add_decoded(codec: Codec, acc: Array, payload: Payload, weight: float) -> Array:
    """acc += weight * decoded, in place."""
    if codec.add is not None:
        return codec.add(acc, payload, weight)
    acc += np.float32(weight) * codec.decode(payload, acc.size)
    return acc


def opened(name: str, payload: Payload, *form: tuple[Any, tuple[int, ...]], into: Array | None = None) -> Payload:
    """The payload, which comes from elsewhere, if its arrays have these dtypes and shapes and lie apart from `into`.

    Raises: TypeError, ValueError.
    """
    if not isinstance(payload, tuple) or len(payload) != len(form):
        got = f"{len(payload)}" if isinstance(payload, tuple) else type(payload).__name__
        raise TypeError(f"a payload of {name} is a tuple of {counted(len(form), 'array')}, got {got}")
    for part, (dtype, shape) in zip(payload, form, strict=True):
        if type(part) not in door.ARRAYS or part.dtype != dtype:
            raise TypeError(f"a payload of {name} has an array of {np.dtype(dtype)}{list(shape)}, got {door.described(part)}")
        if part.shape != shape or not (part.flags.c_contiguous and part.flags.aligned):
            raise ValueError(f"a payload of {name} has a contiguous array of shape {shape}, got {door.described(part)}")
        if into is not None and np.may_share_memory(part, into):
            raise ValueError(f"a payload of {name} is decoded into memory of its own, got arrays that overlap")
    return payload


def payload_bytes(payload: Payload) -> int:
    """Return the number of bytes that are sent."""
    return sum(part.nbytes for part in payload)
