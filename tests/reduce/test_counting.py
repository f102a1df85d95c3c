import time

import numpy as np

from hpcai.comm import threads
from hpcai.reduce.counting import Mute, Tally


def test_calls_and_the_time_of_coding_are_counted():
    def program(comm):
        tally = Tally()
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
    mute = Mute(1, 3)
    for made in (mute.allgather, mute.alltoall):
        x = np.arange(6.0).reshape(3, 2)
        assert made(x) is x
        assert x.tolist() == [[2.0, 3.0]] * 3
    (x,) = mute.allgather_each([np.arange(6.0).reshape(3, 2)])
    assert x.tolist() == [[2.0, 3.0]] * 3
    whole = np.arange(3.0)
    assert mute.allreduce(whole) is whole
    assert whole.tolist() == [0.0, 1.0, 2.0]
