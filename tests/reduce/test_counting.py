import time

import numpy as np

from hpcai.comm import threads
from hpcai.reduce import counting
from hpcai.reduce.counting import CostRecord, Sent, SilentRank


def test_calls_and_the_time_of_coding_are_counted():
    def program(comm):
        tally = CostRecord()
        for _ in range(2):
            with tally.of(comm, "auto") as counting:
                time.sleep(0.02)
                counting.allreduce(np.ones(6, np.float32))
                assert len(list(counting.allgather_each(np.zeros((2, 3), np.float32) for _ in range(2)))) == 2
        return tally

    for tally in threads.run(2, program):
        assert tally.count == 2
        assert tally.coding_s >= 0.04
        assert [(call.kind, call.nbytes, call.beside) for call in tally.calls] == [
            ("allreduce", 24, False),
            ("allgather", 24, True),
            ("allgather", 24, True),
        ]
        assert all(call.seconds >= 0 for call in tally.calls)


def test_a_rank_that_is_alone_hears_itself_from_all():
    mute = SilentRank(1, 3)
    for made in (mute.allgather, mute.alltoall):
        x = np.arange(6.0).reshape(3, 2)
        assert made(x) is x
        assert x.tolist() == [[2.0, 3.0]] * 3
    (x,) = mute.allgather_each([np.arange(6.0).reshape(3, 2)])
    assert x.tolist() == [[2.0, 3.0]] * 3
    whole = np.arange(3.0)
    assert mute.allreduce(whole) is whole
    assert whole.tolist() == [0.0, 1.0, 2.0]


class Clock:
    """Seconds that pass where a test says so."""

    now = 0.0

    def __call__(self):
        return self.now

    def passes(self, seconds, x):
        self.now += seconds
        return x


def test_seconds_are_told_apart_to_the_last(monkeypatch):
    """Making an item takes 1 s, sending it 2, taking it 4, other coding 16; an all-reduce 8."""
    clock = Clock()
    monkeypatch.setattr(counting, "perf_counter", clock)

    class Wire:
        rank, size = 0, 2

        def allreduce(self, x, op, *, algorithm):
            return clock.passes(8, x)

        def allgather_each(self, items):
            for x in items:
                yield clock.passes(2, x)

    tally, row = CostRecord(), np.zeros(2, np.float32)
    assert (tally.count, tally.coding_s, Sent("allgather", 8).seconds) == (0, 0.0, 0.0)
    for turn in (1, 2):
        with tally.of(Wire(), "auto") as counted:
            assert (counted.calls, counted.beside_s) == ([], 0.0)
            clock.passes(16, counted.allreduce(row))
            for x in counted.allgather_each(clock.passes(1, row) for _ in range(3)):
                clock.passes(4, x)
        assert [call.seconds for call in tally.calls] == [8.0, 2.0, 2.0, 2.0]
        assert counted.beside_s == 2 * 4 + 2 * 1  # taking the first two, and making the last two
        assert tally.count == turn
        assert tally.coding_s == turn * (16 + 3 * (1 + 4))
