"""Predictions of the time that each way to reduce a gradient takes here: the times of wire and coding are measured and added.

For each collective, a curve of seconds over bytes is measured, up to sizes that take a tenth of a second. Beyond these sizes, a
byte costs as much as in the curve's last stretch. Coding is timed on the real sizes, on all ranks at once, with nothing sent.
The share of coding that is hidden behind the wire is measured too, since carrying bytes also needs the core.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import NamedTuple

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.reduce.counting import Counting, SilentRank, sent_bytes
from hpcai.reduce.reducer import Reducer
from hpcai.xp import Array

KINDS = ("gradient", "allreduce", "allgather", "alltoall")
LONGEST_S = 0.1
REPEATS = 5
PART_BYTES = 1 << 18
"""Bytes of each array in the stream of all-gathers that is measured."""


class Curve(NamedTuple):
    """The seconds of a collective at some sizes of its array, in bytes."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, nbytes: int) -> float:
        """Return the seconds for an array of `nbytes` bytes: linear between the measured points and beyond the last.

        >>> Curve((0, 100, 200), (1.0, 2.0, 4.0)).at(50), Curve((0, 100, 200), (1.0, 2.0, 4.0)).at(300)
        (1.5, 6.0)
        """
        last = self.sizes[-1]
        if nbytes <= last or len(self.sizes) == 1:
            return float(np.interp(nbytes, self.sizes, self.seconds))
        slope = max(0.0, self.seconds[-1] - self.seconds[-2]) / (last - self.sizes[-2])
        return self.seconds[-1] + slope * (nbytes - last)


class Wire(NamedTuple):
    """curves: for each kind of collective. For `allgather_each`: call_s, seconds of a call, in which the core is busy; byte_s,
    seconds of a byte; hidden: the share of the bytes' time in which coding goes on."""

    curves: dict[str, Curve]
    call_s: float
    byte_s: float
    hidden: float


class Prediction(NamedTuple):
    """For one choice, over all buckets: seconds of coding that are not hidden, seconds on the wire, bytes that a rank sends."""

    name: str
    coding_s: float
    wire_s: float
    sent: float

    @property
    def seconds(self) -> float:
        """Return the seconds of the whole reduction."""
        return self.coding_s + self.wire_s


def measure_wire(comm: Communicator, largest: int, algorithm: str = "auto") -> Wire:
    """Measure the wire, for arrays of up to `largest` bytes. The result is the same on all ranks. Collective.

    algorithm: of all-reduces. Gradients have their own curve, since they lie in symmetric arrays, which are faster on a node.
    """
    reduced = partial(comm.allreduce, algorithm=algorithm)
    curves = {
        "gradient": _curve(comm, reduced, comm.symmetric_empty, largest),
        "allreduce": _curve(comm, reduced, np.empty, largest),
        "allgather": _curve(comm, comm.allgather, np.empty, largest),
        "alltoall": _curve(comm, comm.alltoall, np.empty, largest),
    }
    return Wire(curves, *_stream(comm))


def predict(reducers: Sequence[tuple[int, Reducer]], comm: Communicator, wire: Wire) -> Prediction:
    """Predict the cost of reducing arrays of these lengths with their reducers. Equal on all ranks. Collective."""
    coding, on_wire, sent = 0.0, 0.0, 0.0
    for n, reducer in reducers:
        gradient = np.random.default_rng([comm.rank, n]).standard_normal(n, np.float32)
        counting = Counting(SilentRank(comm.rank, comm.size), gradient=gradient)
        turns = _coding_s(reducer, gradient, comm, counting)
        alone = sum(wire.curves[call.kind].at(call.nbytes) for call in counting.calls if not call.beside)
        streamed = [call.nbytes for call in counting.calls if call.beside]
        stream_s = wire.byte_s * sum(streamed)
        coding += statistics.median(spent - wire.hidden * min(beside, stream_s) for spent, beside in turns)
        on_wire += alone + wire.call_s * len(streamed) + stream_s
        sent += sum(sent_bytes(call, comm.size) for call in counting.calls)
    return Prediction(reducers[0][1].name, coding, on_wire, sent)


def best(predictions: Sequence[Prediction], gain: float = 1.05) -> Prediction:
    """Return the fastest prediction if it is faster than the first by a factor of `gain`; otherwise the first."""
    quickest = min(predictions, key=lambda one: one.seconds)
    return quickest if predictions[0].seconds > gain * quickest.seconds else predictions[0]


def _curve(comm: Communicator, call: Callable[[Array], object], make: Callable[..., Array], largest: int) -> Curve:
    sizes: list[int] = []
    seconds: list[float] = []
    width, most = 16, max(largest, 1024)
    while True:
        x = make((comm.size, width), np.float32)
        x[:] = 0
        sizes.append(x.nbytes)
        seconds.append(_undisturbed(comm, partial(call, x)))
        if x.nbytes >= most or seconds[-1] > LONGEST_S:
            return Curve(tuple(sizes), tuple(seconds))
        width = min(4 * width, max(width + 1, -(-most // (4 * comm.size))))


def _stream(comm: Communicator) -> tuple[float, float, float]:
    """Measure streams of arrays. Return the seconds of a call and of a byte, and the share of copying that the bytes hide. The
    streams are: long arrays, long arrays beside copies, short arrays beside copies.

    Copies beside an array take about as long as the array alone. That time is measured on long arrays: a curve of small arrays,
    extended to long arrays, would turn a disturbance of its last points into thousands of copies.
    """
    source = np.zeros(4 * PART_BYTES, np.uint8)
    target = np.empty_like(source)
    copy_s = _undisturbed(comm, lambda: np.copyto(target, source))
    part = np.zeros((comm.size, PART_BYTES // comm.size), np.uint8)
    alone_s = _undisturbed(comm, partial(comm.allgather, part))
    count, copies = int(np.clip(LONGEST_S / alone_s, 8, 64)), max(1, round(alone_s / copy_s))

    def made(rows: list[Array], copies: int) -> Iterator[Array]:
        for row in rows:
            for _ in range(copies):
                np.copyto(target, source)
            yield row

    def stream_s(row_bytes: int, copies: int) -> float:
        rows = [np.zeros((comm.size, row_bytes // comm.size), np.uint8) for _ in range(count)]
        return _undisturbed(comm, lambda: sum(1 for _ in comm.allgather_each(made(rows, copies))))

    copying_s = _undisturbed(comm, lambda: sum(1 for _ in made([source] * count, copies)))
    calls_s = max(0.0, stream_s(8 * comm.size, copies) - copying_s)
    bytes_s = max(1e-9, stream_s(PART_BYTES, 0) - calls_s)
    hidden = (bytes_s + copying_s + calls_s - stream_s(PART_BYTES, copies)) / min(bytes_s, copying_s)
    return calls_s / count, bytes_s / (count * PART_BYTES), min(1.0, max(0.0, hidden))


def _coding_s(reducer: Reducer, gradient: Array, comm: Communicator, counting: Counting) -> list[tuple[float, float]]:
    """Measure some reductions in which nothing is sent. Return for each the seconds of coding on the slowest rank, and how many
    of these the wire could hide. `counting` keeps the calls of the last reduction.
    """
    fresh, state = gradient.copy(), reducer.init(gradient)
    turns = np.zeros((1 + REPEATS, 2))
    for turn in turns:
        gradient[:] = fresh
        counting.calls.clear()
        counting.beside_s = 0.0
        comm.barrier()
        begin = perf_counter()
        state = reducer.reduce(gradient, counting, state).state
        turn[:] = perf_counter() - begin - sum(call.seconds for call in counting.calls), counting.beside_s
    comm.allreduce(turns, "max")
    return [(spent, min(spent, beside)) for spent, beside in turns[1:].tolist()]


def _undisturbed(comm: Communicator, call: Callable[[], object]) -> float:
    """Return the lower quartile of the times of 5 calls (3 if they take long), after one warm-up call. The slowest rank's time
    counts. Disturbances, above all lost packets, only make a call longer.
    """
    times: list[float] = []
    while len(times) <= REPEATS and not (len(times) > 3 and sum(times) > 2 * LONGEST_S):
        comm.barrier()
        begin = perf_counter()
        call()
        times.append(float(comm.allreduce(np.array([perf_counter() - begin]), "max")[0]))
    return sorted(times[1:])[len(times[1:]) // 4]
