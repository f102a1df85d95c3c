"""The ring: schedule + fold + wire, pipelined in segments.

A chunk travels in segments. A rank folds segment k of one step while segment k+1 is on its way, and passes k on at once, so
folds overlap with transfers and messages never exceed SEGMENT_BYTES, however long the array. A rank sends at each step what it
received at the step before, also from the first lap into the second, so an all-reduce is one stream without a pause.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from hpcai import ops
from hpcai.comm.algorithms import schedule
from hpcai.comm.wire import Pending, Wire
from hpcai.xp import Array, accumulation_dtype

SEGMENT_BYTES = 60 << 10
"""The longest message: shorter than those for which MPIs use a handshake over TCP (64 KiB), which waits behind queued data."""

WIDE_ELEMENTS = 1 << 24
"""16-bit arrays are reduced in blocks of this many elements, which bounds the f32 scratch to 64 MiB."""

IN_FLIGHT = 256
"""How many messages are under way at a time in each direction."""

_kept = threading.local()
"""Each thread keeps its scratch between calls: its pages are mapped, and requests on it can be used again."""


class Arrival(NamedTuple):
    """One segment from the left: the array for it, the fold into that array (None: it is copied), and what is then sent right."""

    target: Array
    fold: Callable[[Array, Array], object] | None
    forward: Array | None


def allreduce(x: Array, wire: Wire, op: str = "sum") -> Array:
    """Reduce `x` over all ranks, in place, on a ring (see schedule.py for the two laps).

    Args:   x: (n,) contiguous; f16, bf16, f32, f64, i32, i64; any n >= 0, equal on all ranks. Overwritten.
            op: "sum", "mean", "max", "min". 16-bit values are summed in f32 and rounded once; the mean of integers truncates.
    Returns: x; the same bytes on every rank and from run to run.
    Cost:   2(P-1) messages a segment and 2n(P-1)/P elements sent per rank (16-bit: the first lap carries f32);
            scratch: 256 segments, 15 MiB, at most (16-bit: 4n bytes, 64 MiB at most).
    Source: Patarasuk & Yuan, JPDC 69(2), 2009, doi:10.1016/j.jpdc.2008.09.002.
    """
    for block in blocks(x):
        _finish(stream(block, wire, op))
    return x


def stream(x: Array, wire: Wire, op: str, divisor: int = 0, lane: int = 0) -> Iterator[Pending]:
    """`allreduce` of one block as a generator: it yields each message that it waits for, so that the caller can do other work.

    divisor: of a mean, if it is not the number of ranks. lane: 0 or 1; two streams may run at a time, one in each lane.
    """
    first, folded = _folding_lap(x, wire, op, divisor or wire.size, forward=True)
    _, copied = _copying_lap(x, wire)
    yield from _stream(wire, first, folded + copied, lane)


def _finish(running: Iterator[Pending]) -> None:
    for pending in running:
        pending.wait()


def reduce_scatter(x: Array, wire: Wire, op: str = "sum") -> Array:
    """The first lap alone: rank r's chunk of `x` is reduced over all ranks, the rest of `x` is left undefined.

    Arguments as `allreduce`. Returns the rank's own chunk, a view. Cost: n(P-1)/P elements sent per rank.
    """
    _finish(_stream(wire, *_folding_lap(x, wire, op, wire.size, forward=False)))
    return x[schedule.split(x.size, wire.size, wire.rank)]


def allgather(x: Array, wire: Wire) -> Array:
    """The second lap alone: every rank gives its own chunk of `x` and receives the others', in place.

    Any dtype. Cost: n(P-1)/P elements sent per rank.
    """
    _finish(_stream(wire, *_copying_lap(x, wire)))
    return x


def allgather_each(arrays: Iterable[Array], wire: Wire) -> Iterator[Array]:
    """`allgather` of several arrays in turn; the next array is taken and its transfer started before an array is yielded."""
    before: tuple[Array, Iterator[Pending]] | None = None
    for i, x in enumerate(arrays):
        running = _stream(wire, *_copying_lap(x.reshape(-1), wire), lane=i % 2)
        next(running, None)  # begun: its first messages are on their way
        if before is not None:
            _finish(before[1])
            yield before[0]
        before = x, running
    if before is not None:
        _finish(before[1])
        yield before[0]


def broadcast(x: Array, wire: Wire, root: int = 0) -> Array:
    """Copy `x` from `root` to all ranks, in place, along a chain: each rank passes a segment on while the next arrives.

    Any dtype. Cost: n elements received and sent per rank, P-1+k message times for k segments.
    """
    place, right, left = (wire.rank - root) % wire.size, (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    pieces = segments(x, -(-x.nbytes // SEGMENT_BYTES))
    receives: list[Pending] = []
    sends: list[Pending] = []
    for i, piece in enumerate(pieces):
        if place > 0:
            receives += [wire.receive(ahead, left) for ahead in pieces[len(receives) : i + IN_FLIGHT]]
            receives[i].wait()
        if place < wire.size - 1:
            sends.append(wire.send(piece, right))
    for pending in sends:
        pending.wait()
    return x


def _folding_lap(x: Array, wire: Wire, op: str, divisor: int, forward: bool) -> tuple[list[Array], list[Arrival]]:
    """The reduce-scatter: the segments to send first, and the arrivals. With `forward` reduced segments go on into lap two.

    16-bit values travel and are folded as f32, and are rounded once, after the mean's division, when a segment is reduced.
    """
    narrow = accumulation_dtype(x.dtype) != x.dtype
    acc = ops.cast_into.unchecked(np.empty(x.shape, np.float32), x) if narrow else x
    verb = "sum" if op == "mean" else op
    steps = schedule.reduce_scatter(wire.rank, wire.size)

    def fold(kept: Array, came: Array) -> None:
        ops.fold_into.unchecked(kept, came, verb)

    arrivals = []
    count = _segment_count(x, wire)
    for step in steps[:-1]:
        arrivals += [Arrival(piece, fold, piece) for piece in _pieces(acc, wire, step.receive, count)]
    for step in steps[-1:]:
        for wide, result in zip(_pieces(acc, wire, step.receive, count), _pieces(x, wire, step.receive, count), strict=True):
            finish = _finisher(fold, result if narrow else None, divisor if op == "mean" else 1)
            arrivals.append(Arrival(wide, finish, result if forward else None))
    return _pieces(acc, wire, steps[0].send, count) if steps else [], arrivals


def _finisher(fold: Callable[[Array, Array], None], result: Array | None, divisor: int) -> Callable[[Array, Array], None]:
    def finish(kept: Array, came: Array) -> None:
        fold(kept, came)
        if divisor > 1:
            ops.divide_into.unchecked(kept, divisor)
        if result is not None:
            ops.cast_into.unchecked(result, kept)

    return finish


def _copying_lap(x: Array, wire: Wire) -> tuple[list[Array], list[Arrival]]:
    """The all-gather: the segments to send first, and the arrivals."""
    steps = schedule.allgather(wire.rank, wire.size)
    count = _segment_count(x, wire)
    arrivals = [
        Arrival(piece, None, piece if step is not steps[-1] else None)
        for step in steps
        for piece in _pieces(x, wire, step.receive, count)
    ]
    return _pieces(x, wire, steps[0].send, count) if steps else [], arrivals


def _stream(wire: Wire, first: list[Array], arrivals: list[Arrival], lane: int = 0) -> Iterator[Pending]:
    """Send the segments of `first`; receive the arrivals in turn and send what each forwards. Yields the messages to wait for.

    A segment of the second lap is received into memory from which a segment of the first lap was sent: that send must have ended.
    """
    right, left = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    folds = sum(arrival.fold is not None for arrival in arrivals)
    buffers = scratch(lane, min(IN_FLIGHT, folds), max((arrival.target.nbytes for arrival in arrivals), default=0))
    outgoing = list(first)
    sends: list[Pending] = []
    receives: list[Pending] = []

    def send(limit: int) -> None:
        while len(sends) < min(limit, len(outgoing)):
            sends.append(wire.send(outgoing[len(sends)], right, lane))

    def landing(i: int) -> Array:
        target, fold, _ = arrivals[i]
        return target if fold is None else buffers[i % IN_FLIGHT][: target.nbytes].view(target.dtype)

    for at, (target, fold, forward) in enumerate(arrivals):
        send(at + IN_FLIGHT)
        while len(receives) < min(at + IN_FLIGHT, len(arrivals)):
            i = len(receives)
            if folds and i >= folds:
                if i > at and not (i - folds < len(sends) and sends[i - folds].done()):
                    break
                yield from _until_done(sends[i - folds])
            receives.append(wire.receive(landing(i), left, lane))
        yield from _until_done(receives[at])
        if fold is not None:
            fold(target, landing(at))
        if forward is not None:
            outgoing.append(forward)
    send(len(outgoing))
    for pending in sends:
        yield from _until_done(pending)


def _until_done(pending: Pending) -> Iterator[Pending]:
    while not pending.done():
        yield pending


def scratch(lane: int, count: int, nbytes: int) -> list[Array]:
    """`count` buffers of at least `nbytes` bytes each, kept for this thread and lane."""
    room = -(-nbytes // 64) * 64
    kept: dict[int, Array] = _kept.__dict__.setdefault("lanes", {})
    if lane not in kept or kept[lane].size < count * room:
        kept[lane] = np.empty(count * room, np.uint8)
    return [kept[lane][k * room : (k + 1) * room] for k in range(count)]


def _segment_count(x: Array, wire: Wire) -> int:
    """Into how many segments each chunk of `x` is cut, in both laps: enough for the longest chunk in the dtype of the folds."""
    return max(1, -(-(-(-x.size // wire.size) * accumulation_dtype(x.dtype).itemsize) // SEGMENT_BYTES))


def _pieces(x: Array, wire: Wire, chunk: int, count: int) -> list[Array]:
    return segments(x[schedule.split(x.size, wire.size, chunk)], count)


def segments(x: Array, count: int) -> list[Array]:
    """`x` cut into `count` contiguous pieces."""
    return [x[schedule.split(x.size, count, k)] for k in range(count)]


def blocks(x: Array) -> list[Array]:
    """`x` in one block; a long 16-bit array in blocks of at most WIDE_ELEMENTS, which bounds the f32 scratch."""
    if x.dtype.itemsize != 2 or x.size <= WIDE_ELEMENTS:
        return [x]
    return segments(x, -(-x.size // WIDE_ELEMENTS))
