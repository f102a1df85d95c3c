"""The law of doors: what is not as declared is refused by name, before anything is written, and nothing beside an array is touched.

Every array of a call lies between guard bytes. `assert_door(call, arrays)` makes the right call and then, for each array, calls with
that one wrong in every way that people report.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

GUARD, MARK = 64, 0xA5


class Guarded:
    """Copies of arrays, each between guard bytes."""

    def __init__(self) -> None:
        self.made: list[tuple[np.ndarray, int]] = []

    def __call__(self, x: np.ndarray) -> np.ndarray:
        raw = np.full(x.nbytes + 2 * GUARD + 64, MARK, np.uint8)
        begin = GUARD + -(raw.ctypes.data + GUARD) % 64
        self.made.append((raw, begin))
        raw[begin : begin + x.nbytes] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        self.made[-1] = (raw, begin | x.nbytes << 32)
        return raw[begin : begin + x.nbytes].view(x.dtype).reshape(x.shape)

    def intact(self) -> bool:
        for raw, packed in self.made:
            begin, nbytes = packed & 0xFFFFFFFF, packed >> 32
            if (raw[:begin] != MARK).any() or (raw[begin + nbytes :] != MARK).any():
                return False
        return True


def wrong(x: np.ndarray, written: bool, limit: int | None) -> Iterator[tuple[str, Any]]:
    """Arrays like x, each wrong in its own way, by the name of what is wrong."""
    flat = x.reshape(-1)
    for axis in range(x.ndim):
        where = "first" if axis == 0 else f"{axis}."
        if x.shape[axis]:
            yield f"{where} dim short", np.ascontiguousarray(np.take(x, range(x.shape[axis] - 1), axis))
        yield f"{where} dim long", np.concatenate([x, np.take(x, [0], axis)], axis)
    yield "empty", np.empty((0,) * x.ndim, x.dtype)
    yield "one dim more", x.reshape(*x.shape, 1)
    yield "0-d", np.array(flat[0])
    yield (
        "complex",
        x.astype(np.complex64) if x.dtype.itemsize > 2 or x.dtype.kind in "uf" else x.astype(np.float32).astype(np.complex64),
    )
    yield (
        "other dtype",
        x.astype({"f4": "f8", "f8": "f4", "i8": "f8", "u4": "i8", "u1": "i2", "u2": "i4"}.get(x.dtype.str[1:], "i2")),
    )
    if x.dtype.kind in "iu":
        yield "NaN", np.full(x.shape, np.nan)
    yield "objects", x.astype(object)
    if x.dtype.itemsize > 1 and x.dtype.kind != "V":
        yield "big-endian", x.astype(x.dtype.newbyteorder(">"))
    spread = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    spread[..., ::2] = x
    if not spread[..., ::2].flags.c_contiguous:
        yield "not contiguous", spread[..., ::2]
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    if x.dtype.itemsize > 1:
        yield "not aligned", raw[1:].view(x.dtype).reshape(x.shape)
    if written:
        fixed = x.copy()
        fixed.flags.writeable = False
        yield "read-only", fixed
    yield "masked", np.ma.masked_array(x, np.zeros(x.shape, bool))
    if x.ndim == 2 and x.dtype.kind != "V":
        yield "matrix", x.view(np.matrix)
    yield "list", x.tolist()
    if limit is not None:
        for value in (-1, limit, np.iinfo(x.dtype).max, np.iinfo(x.dtype).min):
            if value < 0 and x.dtype.kind == "u":
                continue
            out = x.copy()
            out.reshape(-1)[-1] = value
            if not 0 <= value < limit:
                yield f"index {value}", out


def overlapping(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Copies of both, of which the second begins within the first."""
    apart = max(x.itemsize, y.itemsize)
    if x.nbytes <= apart or not y.size:
        return None
    raw = np.zeros(x.nbytes + y.nbytes + apart + 64, np.uint8)
    raw = raw[-raw.ctypes.data % 64 :]
    one, two = raw[: x.nbytes].view(x.dtype).reshape(x.shape), raw[apart : apart + y.nbytes].view(y.dtype).reshape(y.shape)
    one[...], two[...] = x, y
    return one, two


def assert_door(
    call: Callable[..., Any],
    arrays: dict[str, np.ndarray],
    *,
    writes: Collection[str] = (),
    limits: dict[str, int] | None = None,
    right: Collection[tuple[str, str]] = (),
    skip: Collection[tuple[str, str]] = (),
    partly: bool = False,
) -> int:
    """`call(**arrays)` is right; with one of them wrong it is refused. Returns how many calls were.

    right: pairs of name and what is wrong with it that are right for this verb all the same. skip: that are not tried.
    partly: several verbs make the call, so that some of it may be done before one refuses.
    """
    guard = Guarded()
    call(**{name: guard(x) for name, x in arrays.items()})
    assert guard.intact(), "the right call wrote beside an array"
    calls = [
        (f"{name} {what}", {name: bad}, (name, what))
        for name, x in arrays.items()
        for what, bad in wrong(x, name in writes, (limits or {}).get(name))
    ]
    for name in writes:
        for other in arrays:
            pair = overlapping(arrays[name], arrays[other]) if other != name else None
            if pair is not None:
                calls.append(
                    (f"{name} overlaps {other}", dict(zip((name, other), pair, strict=True)), (name, f"overlaps {other}"))
                )
    refused = 0
    for what, changed, case in calls:
        if case in skip:
            continue
        guard = Guarded()
        given = {name: guard(x) if name not in changed else changed[name] for name, x in arrays.items()}
        before = {name: x.copy() for name, x in given.items() if isinstance(x, np.ndarray)}
        if case in right:
            call(**given)
            assert guard.intact(), f"{what}: wrote beside an array"
            continue
        try:
            call(**given)
        except (TypeError, ValueError) as error:
            words = str(error)
            assert "\n" not in words, f"{what}: {words}"
            assert any(word in words for word in (" got ", "cannot reshape", "could not broadcast")), (
                f"{what} does not say what it got: {words}"
            )
            refused += 1
        else:
            raise AssertionError(f"{what} was accepted")
        assert guard.intact(), f"{what}: wrote beside an array"
        for name, x in before.items():
            assert partly or x.tobytes() == np.asarray(given[name]).tobytes(), (
                f"{what}: {name} was written though the call was refused"
            )
    return refused
