import threading

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.errors import RankMismatch, UsageError


@pytest.mark.parametrize(
    "sent, wanted",
    [
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros((2, 3)), np.zeros(6)),
        (np.zeros(6), np.zeros(6, np.int64)),
        (np.zeros(5), np.zeros(6)),
        (np.zeros((1,) * 30), np.zeros((1,) * 31)),
    ],
    ids=lambda x: f"{x.dtype}{x.ndim}-{x.size}",
)
def test_an_array_of_another_dtype_or_shape_is_refused_where_it_is_received(sent, wanted):
    def program(comm):
        if comm.rank == 0:
            comm.isend(sent, 1).wait()
            comm.isend(np.arange(3.0), 1).wait()
            return None
        with pytest.raises(RankMismatch, match="rank 1 receives .* from rank 0, which sent .*: dtype and shape must be the same"):
            comm.irecv(wanted.copy(), 0).wait()
        after = np.zeros(3)
        comm.irecv(after, 0).wait()
        return after.tolist()

    assert threads.run(2, program)[1] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("verb", ["isend", "irecv"])
def test_wrong_messages_are_refused_at_once_and_the_next_goes_on(verb):
    fixed = np.zeros(3)
    fixed.flags.writeable = False
    wrong = [
        (np.zeros(3), -1),
        (np.zeros(3), 2),
        (np.zeros(3), None),
        ([0.0], 1),
        (np.zeros(3, object), 1),
        (np.zeros((4, 4))[:, ::2], 1),
        (np.ma.zeros(3), 1),
    ]

    def program(comm):
        for x, peer in wrong + [(fixed, 1)] * (verb == "irecv"):
            with pytest.raises((TypeError, ValueError), match="wants|moves|works"):
                getattr(comm, verb)(x, 1 - comm.rank if peer == 1 else peer)
        with pytest.raises(ValueError, match="number of another rank"):
            getattr(comm, verb)(np.zeros(3), comm.rank)
        x = np.full(3, float(comm.rank))
        if comm.rank == 0:
            comm.isend(x, 1).wait()
        else:
            comm.irecv(x, 0).wait()
        return x.tolist()

    assert threads.run(2, program) == [[0.0] * 3] * 2


@pytest.mark.parametrize("what", ["wait", "done"])
def test_another_thread_may_not_wait_for_a_message(what):
    def program(comm):
        under_way = comm.isend(np.ones(3), 1) if comm.rank == 0 else comm.irecv(np.zeros(3), 0)
        refused = []

        def other():
            try:
                getattr(under_way, what)()
            except UsageError as error:
                refused.append(str(error))

        thread = threading.Thread(target=other, name="another")
        thread.start()
        thread.join()
        under_way.wait()
        assert under_way.done()
        return refused

    for refused in threads.run(2, program):
        assert len(refused) == 1
        assert refused[0].startswith(f"{what} on thread 'another'")
