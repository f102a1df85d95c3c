"""The ring: schedule + fold + wire, pipelined in segments.

A chunk travels in segments. A rank folds segment k of one step while segment k+1 is on its way, and passes k on at once, so
the fold hides behind the wire and messages never exceed `segment_bytes`, however long the array.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpcai import ops
from hpcai.comm import schedule
from hpcai.comm.wire import Wire
from hpcai.xp import Array, accumulation_dtype

SEGMENT_BYTES = 1 << 20
"""Length of one message."""

WIDE_ELEMENTS = 1 << 24
"""16-bit arrays are reduced in blocks of this many elements, which bounds the f32 scratch to 64 MiB."""

IN_FLIGHT = 8
"""Receives posted ahead, so that the wire never waits for a fold or a handshake: two are too few on a slow link."""


def allreduce(x: Array, wire: Wire, op: str = "sum") -> Array:
    """Reduce `x` over all ranks, in place, on a ring (see schedule.py for the two laps).

    Args:   x: (n,) contiguous; f16, bf16, f32, f64, i32, i64; any n >= 0, equal on all ranks. Overwritten.
            op: "sum", "mean", "max", "min". 16-bit values are summed in f32 and rounded once; the mean of integers truncates.
    Returns: x; the same bytes on every rank and from run to run.
    Cost:   2(P-1) messages a segment and 2n(P-1)/P elements sent per rank (16-bit: the first lap carries f32);
            scratch: eight segments (16-bit: 4n bytes, 64 MiB at most).
    Source: Patarasuk & Yuan, JPDC 69(2), 2009, doi:10.1016/j.jpdc.2008.09.002.
    """
    for block in blocks(x):
        reduce_scatter_block(block, wire, op)
        allgather(block, wire)
    return x


def reduce_scatter(x: Array, wire: Wire, op: str = "sum") -> Array:
    """The first lap alone: rank r's chunk of `x` is reduced over all ranks, the rest of `x` is left undefined.

    Arguments as `allreduce`. Returns the rank's own chunk, a view. Cost: n(P-1)/P elements sent per rank.
    """
    return reduce_scatter_block(x, wire, op)


def allgather(x: Array, wire: Wire) -> Array:
    """The second lap alone: every rank gives its own chunk of `x` and receives the others', in place.

    Any dtype. Cost: n(P-1)/P elements sent per rank.
    """
    _lap(x, wire, schedule.allgather(wire.rank, wire.size), None)
    return x


def broadcast(x: Array, wire: Wire, root: int = 0) -> Array:
    """Copy `x` from `root` to all ranks, in place, along a chain: each rank passes a segment on while the next arrives.

    Any dtype. Cost: n elements received and sent per rank, P-1+k message times for k segments.
    """
    place, right, left = (wire.rank - root) % wire.size, (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    sends = []
    for piece in _segments(x, -(-x.nbytes // SEGMENT_BYTES)):
        if place > 0:
            wire.receive(piece, left).wait()
        if place < wire.size - 1:
            sends.append(wire.send(piece, right))
    for pending in sends:
        pending.wait()
    return x


def reduce_scatter_block(x: Array, wire: Wire, op: str) -> Array:
    """`reduce_scatter` of one block: widen 16-bit values, go round, divide for the mean, round once."""
    own = x[schedule.split(x.size, wire.size, wire.rank)]
    narrow = accumulation_dtype(x.dtype) != x.dtype
    acc = ops.cast_into(np.empty(x.shape, np.float32), x) if narrow else x
    fold = "sum" if op == "mean" else op

    _lap(acc, wire, schedule.reduce_scatter(wire.rank, wire.size), lambda kept, came: ops.fold_into(kept, came, fold))

    result = acc[schedule.split(x.size, wire.size, wire.rank)]
    if op == "mean":
        ops.divide_into(result, wire.size)
    return ops.cast_into(own, result) if narrow else own


def _lap(x: Array, wire: Wire, steps: list[schedule.Step], fold: Callable[[Array, Array], object] | None) -> None:
    """Once round the ring, P-1 steps. With `fold` what comes is folded into `x`, without it is copied there.

    All segments of all steps form one stream. What is received at step s is what is sent at step s+1, so each segment goes out
    as soon as it is complete, and the stream never stops between steps.
    """
    right, left = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    longest = -(-x.size // wire.size)
    count = max(1, -(-longest * x.itemsize // SEGMENT_BYTES))

    def pieces(chunk: int) -> list[Array]:
        return _segments(x[schedule.split(x.size, wire.size, chunk)], count)

    arriving = [piece for step in steps for piece in pieces(step.receive)]
    scratch = [np.empty(-(-longest // count), x.dtype) for _ in range(IN_FLIGHT)] if fold else []

    def receive(i: int):
        piece = arriving[i]
        target = scratch[i % IN_FLIGHT][: piece.size] if fold else piece
        return target, wire.receive(target, left) if piece.size else None

    sends = [wire.send(piece, right) for piece in (pieces(steps[0].send) if steps else []) if piece.size]
    receives = [receive(i) for i in range(min(IN_FLIGHT, len(arriving)))]
    for i, piece in enumerate(arriving):
        target, pending = receives[i]
        if pending is not None:
            pending.wait()
            if fold:
                fold(piece, target)
            if i < len(arriving) - count:
                sends.append(wire.send(piece, right))
        if i + IN_FLIGHT < len(arriving):
            receives.append(receive(i + IN_FLIGHT))
    for pending in sends:
        pending.wait()


def _segments(x: Array, count: int) -> list[Array]:
    return [x[schedule.split(x.size, count, k)] for k in range(count)]


def blocks(x: Array) -> list[Array]:
    """`x` whole, or 16-bit arrays in parts whose f32 scratch is bounded."""
    if x.dtype.itemsize != 2 or x.size <= WIDE_ELEMENTS:
        return [x]
    return _segments(x, -(-x.size // WIDE_ELEMENTS))
