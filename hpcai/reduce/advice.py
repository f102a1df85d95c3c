"""What each way to reduce a gradient would take here: the wire measured, coding measured, and the two added.

A curve of seconds over bytes is measured for each collective, up to sizes that take a tenth of a second; longer arrays are taken
to cost as much a byte as the last stretch did. Coding is timed on the real sizes, on all ranks at once, with nothing sent.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import NamedTuple

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.reduce.counting import Counting, Mute, sent_bytes
from hpcai.reduce.reducer import Reducer

KINDS = ("allreduce", "allgather", "alltoall")
LONGEST_S = 0.1
REPEATS = 5


class Curve(NamedTuple):
    """Seconds of a collective at some sizes of its array, in bytes."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, nbytes: int) -> float:
        """Seconds for an array of so many bytes: straight lines between the measured points, and on beyond the last.

        >>> Curve((0, 100, 200), (1.0, 2.0, 4.0)).at(50), Curve((0, 100, 200), (1.0, 2.0, 4.0)).at(300)
        (1.5, 6.0)
        """
        last = self.sizes[-1]
        if nbytes <= last or len(self.sizes) == 1:
            return float(np.interp(nbytes, self.sizes, self.seconds))
        slope = max(0.0, self.seconds[-1] - self.seconds[-2]) / (last - self.sizes[-2])
        return self.seconds[-1] + slope * (nbytes - last)


class Prediction(NamedTuple):
    """For one choice, over all buckets: seconds of coding that are waited for, seconds on the wire, bytes that each rank sends."""

    name: str
    coding_s: float
    wire_s: float
    sent: float

    @property
    def seconds(self) -> float:
        """Of the whole reduction."""
        return self.coding_s + self.wire_s


def measure_wire(comm: Communicator, largest: int) -> dict[str, Curve]:
    """A curve for each collective, for arrays of up to `largest` bytes. The same on all ranks. Collective."""
    return {kind: _curve(comm, kind, largest) for kind in KINDS}


def predict(reducers: Sequence[tuple[int, Reducer]], comm: Communicator, wire: dict[str, Curve]) -> Prediction:
    """What arrays of these lengths take with their reducers. The same on all ranks. Collective."""
    coding, on_wire, sent = 0.0, 0.0, 0.0
    for n, reducer in reducers:
        counting = Counting(Mute(comm.rank, comm.size))
        spent = _coding_s(reducer, n, comm, counting)
        alone = sum(wire[call.kind].at(call.nbytes) for call in counting.calls if not call.beside)
        stream = sum(call.nbytes for call in counting.calls if call.beside)  # what has no pause costs as much as one long array
        together = wire["allgather"].at(stream) if stream else 0.0
        beside = float(comm.allreduce(np.array([counting.beside_s]), "min")[0])  # ranks must come to the same prediction
        coding += max(0.0, spent - min(beside, together))
        on_wire += alone + together
        sent += sum(sent_bytes(call, comm.size) for call in counting.calls)
    return Prediction(reducers[0][1].name, coding, on_wire, sent)


def best(predictions: Sequence[Prediction], gain: float = 1.05) -> Prediction:
    """The quickest, if it is by a factor of `gain` quicker than the first, which is the one to stay with."""
    quickest = min(predictions, key=lambda one: one.seconds)
    return quickest if predictions[0].seconds > gain * quickest.seconds else predictions[0]


def _curve(comm: Communicator, kind: str, largest: int) -> Curve:
    sizes: list[int] = []
    seconds: list[float] = []
    width, most = 16, max(largest, 1024)
    while True:
        x = np.zeros((comm.size, width), np.float32)
        sizes.append(x.nbytes)
        seconds.append(_slowest_median(comm, partial(getattr(comm, kind), x)))
        if x.nbytes >= most or seconds[-1] > LONGEST_S:
            return Curve(tuple(sizes), tuple(seconds))
        width = min(4 * width, max(width + 1, -(-most // (4 * comm.size))))


def _coding_s(reducer: Reducer, n: int, comm: Communicator, counting: Counting) -> float:
    """Seconds of a reduction of n elements in which nothing is sent; the calls of one of them are left in `counting`."""
    gradient = np.random.default_rng([comm.rank, n]).standard_normal(n, np.float32)
    x, state = gradient.copy(), [reducer.init(gradient)]

    def once() -> None:
        counting.calls.clear()
        counting.beside_s = 0.0
        state[0] = reducer.reduce(x, counting, state[0]).state

    def refill() -> None:
        x[:] = gradient

    return _slowest_median(comm, once, refill)


def _slowest_median(comm: Communicator, call: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """The median time of some calls after one to warm up, each that of the slowest rank."""
    times = np.zeros(REPEATS)
    for turn in range(-1, REPEATS):
        before()
        comm.barrier()
        begin = perf_counter()
        call()
        times[turn] = perf_counter() - begin  # the warm-up's is overwritten by the last
        if turn == 0 and comm.allreduce(times[:1].copy(), "max")[0] > LONGEST_S:
            return float(comm.allreduce(times[:1], "max")[0])
    return statistics.median(comm.allreduce(times, "max").tolist())
