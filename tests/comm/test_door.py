"""Who may call: what the misuse matrix (misuse.py) does not see from outside."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from hpcai.comm import background, threads
from hpcai.comm.background import Background
from hpcai.errors import UsageError


def test_the_next_thread_takes_the_place_of_one_that_has_ended():
    def program(comm):
        with pytest.raises(UsageError, match=r"split on thread '.*', but the communicator is that of thread 'rank \d'"):
            on_another_thread(lambda: comm.split(0))
        return comm

    comms = threads.run(2, program)  # whose threads have ended
    assert [comm.rank for comm in comms] == [0, 1]
    results = [None, None]

    def use(rank):
        results[rank] = comms[rank].allreduce(np.ones(3))[0]

    started = [threading.Thread(target=use, args=(rank,)) for rank in range(2)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert results == [2, 2]


def on_another_thread(call):
    raised = []

    def body():
        try:
            call()
        except UsageError as error:
            raised.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def test_within_a_call_no_other_begins_and_the_short_way_is_shut():
    def program(comm):
        comm.door.enter("barrier")
        for call in (
            lambda: comm.allreduce(np.ones(3)),
            lambda: comm.allgather_object(1),
            lambda: comm.isend(np.ones(3), 1 - comm.rank),
        ):
            with pytest.raises(UsageError, match="while barrier is under way"):
                call()
        comm.door.leave()
        return comm.allreduce(np.ones(3))[0]

    assert threads.run(2, program) == [2, 2]


def test_a_message_is_kept_until_it_is_over_and_no_longer():
    def program(comm):
        x = np.ones(10)
        kept = weakref.ref(x)
        if comm.rank == 0:
            comm.isend(x, 1)
        else:
            comm.irecv(x, 0).wait()
        del x
        comm.barrier()
        if comm.rank == 0:
            assert kept() is not None
            comm.isend(np.ones(1), 1).wait()  # looks through those before
            comm.isend(np.ones(1), 1).wait()
        else:
            comm.irecv(np.ones(1), 0).wait()
            comm.irecv(np.ones(1), 0).wait()
        gc.collect()
        return kept() is None and not comm.wire.expected

    assert threads.run(2, program) == [True, True]


def test_messages_may_be_waited_for_in_any_order():
    def program(comm):
        if comm.rank == 0:
            for i in range(5):
                comm.isend(np.full(3, float(i)), 1, lane=i % 2).wait()
            return True
        xs = [np.zeros(3) for _ in range(5)]
        pending = [comm.irecv(x, 0, lane=i % 2) for i, x in enumerate(xs)]
        for one in reversed(pending):
            one.wait()
        return all((x == i).all() for i, x in enumerate(xs))

    assert threads.run(2, program) == [True, True]


def test_calls_of_several_ranks_threads_are_carried_at_the_same_time():
    def program(comm):
        carrier, x = Background(), np.ones(50)
        carrier.start(time.sleep, 0.01 * comm.rank)
        carrier.start(comm.allreduce, x)
        with pytest.raises(UsageError, match="while a Background carries calls of this thread"):
            comm.allreduce(x)
        carrier.wait()
        return x[0], comm.allreduce(np.ones(1))[0]

    assert threads.run(3, program) == [(3, 3)] * 3
    assert not background.outstanding


def test_what_a_background_makes_belongs_to_the_thread_that_gave_the_call():
    def program(comm):
        made, x = [], np.ones(4)
        for _ in range(2):  # two threads of Backgrounds, one giver
            carrier = Background()
            if not made:
                carrier.start(lambda: made.append(comm.split(0)))
            carrier.start(lambda: made[0].allreduce(x))
            carrier.wait()
        made[0].allreduce(x)
        return x.tolist()

    assert threads.run(2, program) == [[8.0] * 4] * 2
