"""Asking and answering, among ranks as threads of this process: each has a watch with a port of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.comm.diagnosis import findings, stacks, watch
from hpcai.comm.launch import host
from tests.command import environment


def watching(size, program):
    """Run `program(comm, its watch)` on ranks as threads."""

    def body(comm):
        mine = watch.Watch(comm)
        comm.barrier()
        try:
            return program(comm, mine)
        finally:
            comm.barrier()
            mine.close()

    return threads.run(size, body)


def called(mine, key):
    """What a caller with this key is answered."""
    with socket.create_connection(("127.0.0.1", mine.listener.getsockname()[1]), timeout=5) as peer:
        peer.settimeout(5)
        peer.sendall(watch._digest(key, watch._receive(peer, watch.DIGEST_BYTES, 5)))
        return watch._receive(peer, watch.ANSWER_BYTES, 5, whole=False)


def test_a_rank_tells_its_collectives_and_its_stack():
    def program(comm, mine):
        comm.allreduce(np.ones(3))
        comm.barrier()
        return mine.ask([1])[1] if comm.rank == 0 else None

    answer = watching(2, program)[0]
    assert answer.reached
    assert answer.told["rank"] == 1
    assert answer.told["made"] >= 2
    assert any("test_watch.py" in line for _, lines in answer.told["stacks"] for line in lines)


def test_who_does_not_know_the_key_gets_no_answer():
    def program(comm, mine):
        return called(mine, mine.key), called(mine, bytes(32)), called(mine, mine.key)

    right, wrong, again = watching(1, program)[0]
    assert json.loads(right)["rank"] == json.loads(again)["rank"] == 0
    assert wrong == b""


def test_a_caller_that_says_nothing_holds_nobody_up():
    def program(comm, mine):
        if comm.rank:
            return None
        with socket.create_connection(("127.0.0.1", mine.places[1].port)):
            begin = time.monotonic()
            return mine.ask([1])[1].told is not None, time.monotonic() - begin

    answered, seconds = watching(2, program)[0]
    assert answered
    assert seconds < 5


def test_a_rank_that_answers_too_late_is_asked_once_more(monkeypatch):
    tell, asked = stacks.tell, []

    def slowly(family):
        asked.append(1)
        if len(asked) == 1:
            time.sleep(watch.ANSWER_S + 0.5)
        return tell(family)

    def program(comm, mine):
        return mine.ask_twice([1])[1] if comm.rank == 0 else None

    monkeypatch.setattr(stacks, "tell", slowly)
    assert watching(2, program)[0].told["rank"] == 1
    assert len(asked) == 2


@pytest.mark.parametrize(
    "changes, state, twice",
    [
        ({}, "R", True),
        ({}, "T", False),
        ({}, "gone", False),
        ({"reached": True}, "", True),
        ({}, "", False),
        ({"place": None}, "R", False),
        ({"told": {}}, "R", False),
    ],
)
def test_asked_once_more_are_those_that_may_yet_answer(changes, state, twice, monkeypatch):
    asking = SimpleNamespace(ask=lambda ranks, limit_s=0.0: asked.append(ranks) or dict.fromkeys(ranks, answer))
    asking._lives = lambda one: watch.Watch._lives(asking, one)
    answer, asked = watch.Answer(None, place=host.here(1))._replace(**changes), []
    monkeypatch.setattr(watch, "process_state", lambda place: state)
    assert watch.Watch.ask_twice(asking, [3]) == {3: answer}
    assert asked == ([[3], [3]] if twice else [[3]])


def test_where_no_socket_can_be_opened_the_rank_is_silent(monkeypatch):
    def refuse(*arguments, **more):
        raise OSError("forbidden")

    monkeypatch.setattr(socket, "create_server", refuse)
    answer = watching(2, lambda comm, mine: mine.ask([1 - comm.rank]))[0][1]
    assert answer.told is None
    assert not answer.place.port
    assert answer.state in ("R", "S", "")


def test_the_state_of_processes_of_this_host_is_known():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        place = host.here(1)._replace(pid=child.pid, started=host._stat(child.pid)[1])
        if not place.pids:
            pytest.skip("there is no /proc")
        child.send_signal(signal.SIGSTOP)
        end = time.monotonic() + 10
        while host.process_state(place) != "T":
            assert time.monotonic() < end
    finally:
        child.kill()
    child.wait()
    assert host.process_state(place) == "gone"
    assert host.process_state(place._replace(pid=os.getpid())) == "gone"  # another process by that number
    assert host.process_state(place._replace(boot="elsewhere")) == ""


def test_of_processes_that_are_stopped_those_that_stay_so_are_ended(monkeypatch, capsys):
    """One goes on between the two looks, as where a whole job was stopped; one of another machine cannot be known to be frozen."""
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    try:
        places = [host.here(1)._replace(pid=child.pid, started=host.started(child.pid)) for child in children]
        if not places[0].pids:
            pytest.skip("there is no /proc")
        places[2] = places[2]._replace(boot="elsewhere")
        monkeypatch.setattr(watch, "watch", None)
        monkeypatch.setattr(watch, "beside", places)
        assert watch.end_frozen("a try") == []
        for child in children:
            child.send_signal(signal.SIGSTOP)
        end = time.monotonic() + 10
        while len(watch.frozen()) < 2:
            assert time.monotonic() < end
        timer = threading.Timer(watch.LOOK_AGAIN_S / 4, children[0].send_signal, (signal.SIGCONT,))
        timer.start()
        assert watch.end_frozen("a try") == [places[1]]
        timer.join()
        assert children[1].wait(10) == -signal.SIGKILL
        assert [child.poll() for child in (children[0], children[2])] == [None, None]
        assert capsys.readouterr().err.count("is frozen and keeps others waiting in a try") == 1
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.parametrize("lasts_s, waited_s", [(0.0, 0.0), (0.5, 0.5), (100.0, 2.0)])
def test_the_end_of_those_that_are_killed_is_waited_for(monkeypatch, lasts_s, waited_s):
    clock, killed = SimpleNamespace(s=64.0), []

    def sleep(s):
        clock.s += s

    def state(place):
        return "gone" if killed and clock.s >= killed[0] + lasts_s else "T"

    place = host.here(1)._replace(pid=4711)
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: clock.s, sleep=sleep))
    monkeypatch.setattr(watch, "process_state", state)
    monkeypatch.setattr(watch, "watch", None)
    monkeypatch.setattr(watch, "beside", [place])
    monkeypatch.setattr(watch.os, "kill", lambda pid, how: killed.append(clock.s))
    assert watch.end_frozen("a try") == [place]
    assert killed == [64.0 + watch.LOOK_AGAIN_S]
    assert clock.s == pytest.approx(65.0 + waited_s, abs=0.01)


def test_who_ended_meanwhile_is_no_error(monkeypatch):
    def kill(pid, how):
        raise ProcessLookupError

    states = iter("TT")
    place = host.here(1)
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda s: None))
    monkeypatch.setattr(watch, "process_state", lambda place: next(states, "gone"))
    monkeypatch.setattr(watch, "watch", SimpleNamespace(places=[place]))
    monkeypatch.setattr(watch, "beside", [])
    monkeypatch.setattr(watch.os, "kill", kill)
    assert watch.end_frozen("a try") == [place]


@pytest.fixture
def serving(monkeypatch):
    """A watch whose thread's work is done here, by a clock and a listener of the test's own."""
    mine = watch.Watch.__new__(watch.Watch)
    mine.clock, mine.naps, mine.limits, mine.looks, mine.answered = 64.0, [], [], [], []

    def wait(s):
        mine.naps.append((mine.clock, s))
        mine.clock += s

    mine.closed = SimpleNamespace(is_set=lambda: len(mine.looks) == 3, wait=wait)
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: mine.clock))
    monkeypatch.setattr(mine, "_answer", mine.answered.append, raising=False)

    def look():
        mine.looks.append(mine.clock)
        return 2.0

    mine.look = look
    return mine


@pytest.mark.parametrize("fails, pause_s", [(False, 2.0), (True, 5.0)])
def test_without_a_socket_it_looks_at_waits_all_the_same(serving, fails, pause_s):
    inner = serving.look

    def look():
        inner()
        if fails:
            raise RuntimeError("a rank that is being taken down")
        return 2.0

    serving.look, serving.listener = look, None
    serving._serve()
    assert serving.looks == [64.0, 64.0 + pause_s, 64.0 + 2 * pause_s]
    assert serving.naps == [(at, pause_s) for at in serving.looks]


def test_between_two_looks_it_answers_and_survives_what_fails(serving):
    class Peer(contextlib.nullcontext):
        def __exit__(self, *error):
            serving.limits.append("closed")

    def accept(after_s, what):
        serving.clock += after_s
        if isinstance(what, Exception):
            raise what
        return what, "address"

    good, bad = Peer("good"), Peer("bad")
    came = iter(
        [(0.5, good), (0.25, OSError("no more descriptors")), (0.25, bad), (5.0, TimeoutError()), (2.0, good), (9.0, good)]
    )

    def answer(peer):
        serving.answered.append(peer)
        if peer is bad:
            raise ValueError("not a question")

    serving._answer = answer
    serving.listener = SimpleNamespace(settimeout=serving.limits.append, accept=lambda: accept(*next(came)))
    serving._serve()
    assert serving.answered == [good, bad, good]
    assert serving.limits == pytest.approx([2.0, "closed", 1.5, 1.15, "closed", 0.9, 2.0, "closed"])
    assert serving.looks == pytest.approx([64.0, 70.1, 72.1])
    assert serving.naps == [(64.75, 0.1)]


def test_ranks_of_a_dead_host_cost_a_report_seconds_not_minutes():
    def program(comm, mine):
        nowhere = mine.places[0]._replace(boot="elsewhere", addresses=("192.0.2.1", "192.0.2.2"))  # kept for documentation
        mine.places = [nowhere] * 100
        mine.rank = -1
        begin = time.monotonic()
        answers = mine.ask(range(100))
        return answers, time.monotonic() - begin

    answers, seconds = watching(1, program)[0]
    assert all(answer.told is None for answer in answers.values())
    assert seconds < watch.REPORT_S + 3


FORKING = """
import os, socket
from hpcai.comm import threads
from hpcai.comm.diagnosis import watch
def program(comm):
    watch.start(comm)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if watch.watch is None else 1)
    assert os.waitpid(pid, 0)[1] == 0
    with socket.create_connection(("127.0.0.1", watch.watch.places[0].port), timeout=20) as peer:
        peer.sendall(watch._digest(watch.watch.key, watch._receive(peer, watch.DIGEST_BYTES, 5)))
        assert watch._receive(peer, watch.ANSWER_BYTES, 5, whole=False)
threads.run(1, program)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_no_watch_and_takes_none_away():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING], check=True, env=environment(), timeout=60)


def test_a_closed_watch_leaves_no_thread():
    before = threading.active_count()
    watching(2, lambda comm, mine: None)
    assert threading.active_count() <= before


def test_a_rank_in_a_collective_that_does_not_wait_is_said_to_be_in_it():
    doing = {"text": "allgather of float64[6] (call 1)", "place": "program.py:11 <module>", "ranks": [0, 1], "waited_s": 0.0}
    told = {"calls": [doing], "stacks": [["MainThread", ["hpcai/comm/communicator.py:287 _collective"]]], "made": 1}
    said = findings.grouped({1: watch.Answer(told, True)}, [1], short=True)
    assert said == [("alive, in allgather of float64[6] (call 1) of ranks 0, 1 at program.py:11 <module>", [1])]
