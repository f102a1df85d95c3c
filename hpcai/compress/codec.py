"""The protocol of a codec: functions and visible state.

Two functions are enough for your own codec; the rest has defaults:

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
"""The arrays that travel: contiguous, with shapes and dtypes that depend on n alone."""

State = Any


def stateless(x: Array) -> State:
    """Return None, as the state of a codec without a state."""
    return None


class Codec(NamedTuple):
    """A codec: it encodes an array in fewer bytes.

    encode(x, state) -> (payload, state): x is flat f32 and is not changed. decode(payload, n) -> (n,) f32.
    init(x) -> the state for arrays like x. summable: the payload's first array, summed over ranks, decodes to the sum of the
    ranks' decoded arrays, and the payload's other arrays are the same on all ranks.

    keep(x, memory, state) -> (payload, state) encodes x + memory and leaves the residual in the memory, in one pass.
    add(acc, payload, weight) adds weight * the decoded array to acc; put(out, payload, weight) writes that to out. Without
    these, encode and decode are used. cut: an array may be cut at multiples of `cut` elements, and its parts encoded one by
    one, with the same result except for random rounding; 0: it may not be cut.
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
    """Return the payload of x + memory and the new state; the memory becomes the residual."""
    if codec.keep is not None:
        return codec.keep(x, memory, state)
    memory += x
    payload, state = codec.encode(memory, state)
    memory -= codec.decode(payload, x.size)
    return payload, state


def add_decoded(codec: Codec, acc: Array, payload: Payload, weight: float) -> Array:
    """acc += weight * the decoded payload, in place. Returns acc."""
    if codec.add is not None:
        return codec.add(acc, payload, weight)
    acc += np.float32(weight) * codec.decode(payload, acc.size)
    return acc


def opened(name: str, payload: Payload, *form: tuple[Any, tuple[int, ...]], into: Array | None = None) -> Payload:
    """Return a payload from elsewhere, after a check: its arrays have these dtypes and shapes and do not overlap `into`.

    Raises: TypeError (no such tuple, wrong dtype), ValueError (wrong shape or memory).
    """
    if not isinstance(payload, tuple) or len(payload) != len(form):
        got = f"{len(payload)}" if isinstance(payload, tuple) else type(payload).__name__
        raise TypeError(f"a payload of {name} must be a tuple of {counted(len(form), 'array')}, got {got}")
    for part, (dtype, shape) in zip(payload, form, strict=True):
        if type(part) not in door.ARRAYS or part.dtype != dtype:
            raise TypeError(f"a payload of {name} needs an array of {np.dtype(dtype)}{list(shape)}, got {door.described(part)}")
        if part.shape != shape or not (part.flags.c_contiguous and part.flags.aligned):
            raise ValueError(f"a payload of {name} needs a contiguous array of shape {shape}, got {door.described(part)}")
        if into is not None and np.may_share_memory(part, into):
            raise ValueError(f"a payload of {name} must not overlap the decoded array, got arrays that share memory")
    return payload


def payload_bytes(payload: Payload) -> int:
    """Return the number of bytes of a payload."""
    return sum(part.nbytes for part in payload)
