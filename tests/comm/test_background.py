"""Calls on the background thread: in order, with their errors, and the same results as without it."""

import threading
import time

import numpy as np
import pytest

from hpcai.comm import background, threads
from hpcai.comm.background import Background, Deferred
from hpcai.errors import UsageError


@pytest.mark.parametrize("carrier", [Background, Deferred])
def test_calls_are_made_in_order_before_wait_returns(carrier):
    made, mine = [], carrier()
    for turn in range(3):
        for i in range(50):
            mine.start(made.append, (turn, i))
        mine.wait()
        assert made == [(t, i) for t in range(turn + 1) for i in range(50)]
    mine.wait()


@pytest.mark.parametrize("carrier", [Background, Deferred])
def test_the_first_error_is_raised_by_wait_and_the_rest_is_left_out(carrier):
    def fail():
        raise ValueError("no")

    made, mine = [], carrier()
    for call in (lambda: made.append(1), fail, lambda: made.append(2)):
        mine.start(call)
    with pytest.raises(ValueError, match="no"):
        mine.wait()
    assert made == [1]
    mine.start(made.append, 3)
    mine.wait()
    assert made == [1, 3]


def test_the_caller_goes_on_and_is_known_to_compute():
    mine, gate, seen = Background(), threading.Event(), []
    mine.start(lambda: seen.append(background.computing))
    mine.start(gate.wait, 10)
    while not seen:
        time.sleep(0.001)
    assert seen == [True]
    gate.set()
    mine.wait()
    assert not background.computing


def test_collectives_of_many_ranks_meet():
    def program(comm):
        mine, xs = Background(), [np.full(1000, comm.rank + float(i)) for i in range(20)]
        for x in xs:
            mine.start(comm.allreduce, x)
        mine.wait()
        return [x[0] for x in xs]

    assert threads.run(3, program) == [[3.0 * i + 3 for i in range(20)]] * 3


def test_after_an_error_that_all_ranks_have_the_calls_they_gave_are_made():
    def program(comm):
        mine, x = Background(), np.ones(4)
        mine.start(comm.allreduce, x)
        mine.start(comm.allreduce, x)
        mine.abandon(KeyError("mine"))
        comm.allreduce(x)
        mine.start(comm.allreduce, x)
        mine.wait()
        return x[0]

    assert threads.run(2, program) == [16.0] * 2
    assert not background.outstanding


@pytest.mark.parametrize("within_wait", [False, True])
def test_after_an_error_of_one_rank_nothing_hangs_and_calls_are_refused_with_that_error(monkeypatch, within_wait):
    monkeypatch.setattr(background, "PATIENCE_S", 0.05)
    gates, made = [threading.Event(), threading.Event()], []

    def interrupted(carrier):
        real, once = carrier._idle.wait_for, [ValueError("my own")]
        carrier._idle.wait_for = lambda *rest: real(*rest) if not once else (_ for _ in ()).throw(once.pop())
        with pytest.raises(ValueError, match="my own"):
            carrier.wait()

    def program(comm):
        mine = Background()
        mine.start(gates[comm.rank].wait, 60)  # as a collective to which nobody else comes
        mine.start(made.append, "left out")
        if within_wait:
            interrupted(mine)
        else:
            mine.abandon(ValueError("my own"))
        for call in (lambda: comm.allreduce(np.ones(1)), lambda: mine.start(made.append, 2)):
            with pytest.raises(UsageError, match="after ValueError: my own; a call that a Background carries") as refused:
                call()
            assert isinstance(refused.value.__cause__, ValueError)
        gates[comm.rank].set()
        while threading.current_thread() in background.outstanding:
            time.sleep(0.001)
        mine.start(made.append, "later")
        mine.wait()
        return comm.allreduce(np.ones(1))[0]

    assert threads.run(2, program) == [2.0] * 2
    assert made == ["later"] * 2


def test_without_a_thread_abandoned_calls_are_not_made_later():
    made, mine = [], Deferred()
    mine.start(made.append, 1)
    mine.abandon(KeyboardInterrupt())
    mine.start(made.append, 2)
    mine.wait()
    assert made == [2]


def test_a_forked_child_has_no_thread_for_calls():
    mine = Background()
    mine._pid = -1  # another process made it
    with pytest.raises(UsageError, match=r"start\(\) in a forked child"):
        mine.start(list)
    with pytest.raises(UsageError, match=r"wait\(\) in a forked child"):
        mine.wait()
    assert not background.outstanding
    assert not background.computing


def test_calls_that_could_come_in_another_order_are_refused():
    mine, other, refused = Background(), Background(), []

    def try_it(call, *arguments):
        try:
            call(*arguments)
        except UsageError as error:
            refused.append(str(error))

    def elsewhere(call, *arguments):
        thread = threading.Thread(target=try_it, args=(call, *arguments), name="another")
        thread.start()
        thread.join()

    with pytest.raises(UsageError, match="wants a callable and its arguments, got 3"):
        mine.start(3)
    mine.start(try_it, other.start, list)
    mine.start(try_it, mine.wait)
    mine.start(mine.start, list)  # a call that gives more of them
    try_it(other.start, list)
    elsewhere(mine.start, list)
    mine.wait()
    assert not background.outstanding
    elsewhere(mine.start, list)
    elsewhere(mine.wait)
    other.start(list)
    other.wait()
    assert sorted(one[:32] for one in refused) == sorted(
        [
            "start() within a call that another Background runs"[:32],
            "wait() within a call that a Background runs"[:32],
            "start() while another Background carries calls"[:32],
            "start() on thread 'another' while calls of"[:32],
        ]
    )


@pytest.mark.parametrize("node", ["0", "1"])
def test_reductions_go_on_beside_computation(monkeypatch, node):
    monkeypatch.setenv("HPCAI_NODE", node)

    def program(comm):
        other = comm.split(0)
        xs = [np.full(1000, float(comm.rank + i)) for i in range(4)]
        requests = [(other if i == 2 else comm).iallreduce(x, "max" if i == 3 else "sum") for i, x in enumerate(xs)]
        with pytest.raises(UsageError, match="carries|Background"):
            comm.barrier()
        assert requests[1].wait() is xs[1]
        assert all(request.done() for request in requests)
        assert [request.wait()[0] for request in requests] == [3.0, 6.0, 9.0, 5.0]
        comm.barrier()
        return comm.iallreduce(np.ones(3)).wait().tolist()

    assert threads.run(3, program) == [[3.0] * 3] * 3


def test_the_error_of_a_request_is_its_own_and_those_behind_it_are_left_out():
    def program(comm):
        first, wrong, behind = comm.iallreduce(np.ones(3)), comm.iallreduce(np.ones(3), "median"), comm.iallreduce(np.ones(3))
        assert first.wait().tolist() == [2.0] * 3
        with pytest.raises(ValueError, match="median"):
            wrong.wait()
        with pytest.raises(UsageError, match="was left out"):
            behind.wait()
        return comm.iallreduce(np.ones(1)).wait()[0]

    assert threads.run(2, program) == [2.0, 2.0]


def test_where_no_thread_may_call_mpi_wait_makes_the_call(monkeypatch):
    def program(comm):
        monkeypatch.setattr(type(comm.wire), "serves_threads", lambda self: False)
        x = np.ones(3)
        request = comm.iallreduce(x)
        assert not request.done()
        return request.wait().tolist()

    assert threads.run(2, program) == [[2.0] * 3] * 2


def test_messages_may_be_waited_for_at_once():
    def program(comm):
        if comm.rank:
            return comm.recv(np.zeros(3), 0).tolist()
        comm.send(np.arange(3.0), 1)
        return None

    assert threads.run(2, program)[1] == [0.0, 1.0, 2.0]


def test_the_earlier_name_of_symmetric_arrays_warns():
    def program(comm):
        with pytest.warns(DeprecationWarning, match="comm.symmetric_empty"):
            return comm.empty(3).shape

    assert threads.run(1, program) == [(3,)]
