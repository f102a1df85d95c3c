"""When a person is warned of a wait, and what is said at its limit: with fakes of the watch; test_stall.py has real processes."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from hpcai.comm.diagnosis import stacks, stall, watch
from hpcai.errors import RankFailed, StallError, UsageError


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.delenv("HPCAI_TIMEOUT_S", raising=False)
    monkeypatch.setattr(stall.waits, "limit_s", None)
    monkeypatch.setattr(stall.waits, "fail", False)
    monkeypatch.setattr(watch, "watch", None)
    monkeypatch.setattr(stacks, "gave_up", {})


def test_the_limit_is_what_was_set_last_else_the_environments_else_five_minutes(monkeypatch):
    assert stall.timeout_s() == 300
    monkeypatch.setenv("HPCAI_TIMEOUT_S", "7")
    assert stall.timeout_s() == 7
    for seconds in (3, 0.5, np.float32(2), np.int8(9)):
        assert stall.set_timeout(seconds) == stall.timeout_s() == seconds
        assert type(stall.timeout_s()) is float
    for wrong in (True, "3", None, 0, -1, float("nan"), float("inf"), 1e12):
        with pytest.raises(UsageError, match="set_timeout wants"):
            stall.set_timeout(wrong)
    assert stall.timeout_s() == 9


def member(rank, ranks=(0, 2, 4, 6), missing=None, waiting_since=0.0, calls=3, path=(1, 0)):
    """A communicator of which this is `rank`, of the world's."""
    wire = SimpleNamespace(ranks=list(ranks), rank=list(ranks).index(rank), timeout_s=8.0)
    return SimpleNamespace(wire=wire, missing=lambda: missing, waiting_since=waiting_since, calls=calls, path=path)


def waits(comm):
    """The answer of a rank that waits in this communicator."""
    one = {"text": "barrier (call 1)", "place": "p.py:1 main", "path": list(comm.path), "ranks": [0, 2], "waited_s": 3.0}
    return watch.Answer({"calls": [one], "stacks": [], "made": 1}, True, "", PLACE)


PLACE = SimpleNamespace(host="node", pid=77, port=5000)
WORKS = watch.Answer({"calls": [], "stacks": [["MainThread", ["p.py:9 busy"]]], "made": 1}, True, "", PLACE)
DEAD = watch.Answer(None, False, "gone", PLACE)
SILENT = watch.Answer(None, False, "S", SimpleNamespace(host="node", pid=77, port=0))


class Watched:
    """A watch of 8 ranks of which those in `answers` say that, and the others that they wait in `comm`."""

    def __init__(self, rank, comm, answers=()):
        self.rank, self.size, self.comm, self.answers, self.asked = rank, 8, comm, dict(answers), []
        self.places = [self.answers.get(one, WORKS).place for one in range(8)]
        self.family = [comm]

    def ask_twice(self, ranks):
        return self.ask(ranks)

    def ask(self, ranks):
        self.asked.append(list(ranks))
        return {rank: self.answers.get(rank, waits(self.comm)) for rank in ranks}


def test_who_has_not_come_is_told_in_numbers_of_the_world():
    assert stall._missing_in_memory(member(2, missing=[0, 3])) == [0, 6]
    assert stall._missing_in_memory(member(2, missing=[])) == []
    assert stall._missing_in_memory(member(2)) is None


@pytest.mark.parametrize(
    "rank, late, answers, leads, asked",
    [
        (0, [2], {}, True, []),
        (4, [0, 2], {}, True, []),
        (4, [0], {}, False, []),
        (4, [6], {}, False, []),
        (0, None, {}, True, [[]]),
        (4, None, {}, False, [[0, 2]]),
        (4, None, {0: WORKS}, False, [[0, 2]]),
        (4, None, {0: WORKS, 2: DEAD}, True, [[0, 2]]),
    ],
)
def test_the_lowest_rank_that_waits_leads(rank, late, answers, leads, asked):
    comm = member(rank)
    watched = Watched(rank, comm, answers)
    assert stall._leads(watched, comm, late) is leads
    assert watched.asked == asked


def test_of_many_lower_ranks_only_some_are_asked():
    comm = member(20, range(30))
    watched = Watched(20, comm, dict.fromkeys(range(8), WORKS))
    watched.rank = 20
    assert stall._leads(watched, comm, None) is False
    assert watched.asked == [list(range(8))]


@pytest.mark.parametrize(
    "timeout_s, limit_s, again_s", [(300.0, 30.0, 5.0), (3000.0, 30.0, 5.0), (100.0, 10.0, 2.5), (5.0, 1.0, 0.25)]
)
def test_a_person_is_warned_once_of_each_wait_after_a_tenth_of_the_limit(monkeypatch, timeout_s, limit_s, again_s):
    stall.set_timeout(timeout_s)
    clock, warned = SimpleNamespace(s=1000.0), []

    class Thread:
        def __init__(self, target, args, daemon, name):
            assert name.startswith(stacks.OWN)
            assert daemon
            self.start = lambda: warned.append(args[0])

    monkeypatch.setattr(stall, "time", SimpleNamespace(monotonic=lambda: clock.s))
    monkeypatch.setattr(stall, "threading", SimpleNamespace(Thread=Thread))
    comm, idle = member(2, waiting_since=1000.0 - limit_s), member(2, path=())
    warnings = stall._Warnings(SimpleNamespace(family=[idle, comm]))
    assert warnings.look() == again_s
    assert warned == []
    clock.s += 1
    for _ in range(2):
        assert warnings.look() == again_s
        assert warned == [comm]
    comm.calls += 1
    comm.waiting_since = 0.0
    warnings.look()
    assert warned == [comm]
    comm.waiting_since = 1.0
    warnings.look()
    assert warned == [comm, comm]


def warn(monkeypatch, capsys, comm, watched, found=True):
    call = stacks.Call("barrier (call 1)", "p.py:1 main", comm, comm.wire) if found else None
    monkeypatch.setattr(stall, "time", SimpleNamespace(monotonic=lambda: 112.3))
    warnings = stall._Warnings(watched)
    monkeypatch.setattr(warnings, "_call", lambda asked: {id(comm): call}[id(asked)])
    warnings._warn(comm)
    return capsys.readouterr().err


@pytest.mark.parametrize("outlived, end", [(False, "The job ends"), (True, "It counts as failed")])
@pytest.mark.parametrize("missing", [[2, 3], None])
def test_the_warning_says_who_keeps_whom_waiting(monkeypatch, capsys, outlived, end, missing):
    monkeypatch.setattr(stall.waits, "fail", outlived)
    comm = member(0, missing=missing, waiting_since=100.0)
    watched = Watched(0, comm, {4: WORKS, 6: DEAD})
    assert warn(monkeypatch, capsys, comm, watched) == (
        "hpcai: ranks 4, 6 kept others waiting for 12 s in barrier (call 1) at p.py:1 main. "
        "rank 4: alive and at work at p.py:9 busy; rank 6: dead: process 77 on node has ended. "
        f"{end} when a wait reaches 300 s.\n"
    )
    assert watched.asked == ([[4, 6]] if missing else [[], [0, 2, 4, 6]])


@pytest.mark.parametrize("why", ["another leads", "they came", "the wait ended", "the call ended", "only those that cannot say"])
def test_where_there_is_nothing_to_warn_of_nothing_is_said(monkeypatch, capsys, why):
    rank = 2 if why == "another leads" else 0
    answers = {} if why == "they came" else {4: SILENT if why == "only those that cannot say" else WORKS}
    comm = member(rank, waiting_since=0.0 if why == "the wait ended" else 100.0)
    assert warn(monkeypatch, capsys, comm, Watched(rank, comm, answers), why != "the call ended") == ""


def test_the_call_is_that_of_the_thread_that_waits_in_this_communicator(monkeypatch):
    comm, other = member(0), member(2)
    calls = [None, stacks.Call("x", "", other, other.wire), stacks.Call("y", "", comm, comm.wire)]
    monkeypatch.setattr(stall.sys, "_current_frames", lambda: dict(enumerate(range(3))))
    monkeypatch.setattr(stall.stacks, "current", lambda frame, family: calls[frame])
    assert stall._Warnings(None)._call(comm) is calls[2]
    assert stall._Warnings(None)._call(member(4)) is None


@pytest.fixture
def at_limit(monkeypatch):
    """An error at the limit of a wait, of this call, as the watch has it; and for how long it left the report to others."""

    def error(comm, watched, peer=None, missing=lambda: [1], found=True):
        naps = []
        call = stacks.Call("barrier (call 1)", "p.py:1 main", comm, comm.wire, peer) if found else None
        monkeypatch.setattr(stall.watch, "watch", watched)
        monkeypatch.setattr(stall.stacks, "current", lambda frame, family: call)
        monkeypatch.setattr(stall, "time", SimpleNamespace(sleep=naps.append))
        return stall.error(comm.wire, "a wait", missing), naps

    return error


@pytest.mark.parametrize(
    "rank, missing, answers, late, naps",
    [
        (0, [1], {2: WORKS}, "rank 2", []),
        (2, [2], {4: WORKS}, "rank 4", [stall.PATIENCE_S]),
        (0, None, {4: WORKS, 6: DEAD, 7: DEAD}, "ranks 4, 6", []),
        (2, None, {4: WORKS}, "rank 4", [stall.PATIENCE_S]),
    ],
)
def test_at_the_limit_all_are_asked_by_the_lowest_that_waits_or_later(at_limit, rank, missing, answers, late, naps):
    comm = member(rank, missing=missing)
    watched = Watched(rank, comm, answers)
    error, slept = at_limit(comm, watched)
    lines = str(error).splitlines()
    assert type(error) is StallError
    assert lines[0] == f"rank {rank} waited 8 s in barrier (call 1) at p.py:1 main for {late}, which did not come"
    assert any("alive and at work (collectives called so far: 1)" in line for line in lines)
    assert "wait longer than 8 s" in lines[-1]
    assert watched.asked[-1] == list(range(8))
    assert slept == naps
    assert stacks.gave_up[threading.get_ident()][1]["waited_s"] == 8.0


def test_a_message_is_its_peers_to_send(at_limit):
    comm = member(2, missing=[])
    error, _ = at_limit(comm, Watched(2, comm), peer=3)
    assert "for rank 6, which did not come" in str(error)


def test_where_all_wait_it_is_a_message_that_is_missing(at_limit):
    comm = member(0)
    error, _ = at_limit(comm, Watched(0, comm))
    assert "at p.py:1 main for a message, though all ranks wait" in str(error)


def test_where_nobody_can_be_asked_the_wire_tells(at_limit):
    comm = member(0, missing=[3])
    watched = Watched(0, comm, dict.fromkeys(range(1, 8), SILENT))
    error, _ = at_limit(comm, watched, missing=lambda: [1, 2])
    assert "for ranks 2, 4, which did not come" in str(error)
    watched.places[0] = SimpleNamespace(port=0)
    watched.places[5] = PLACE
    assert "for rank 6, which did not come" in str(at_limit(comm, watched)[0])


@pytest.mark.parametrize("lacks", ["watch", "call"])
def test_without_a_watch_or_a_call_the_wire_tells(at_limit, lacks):
    comm = member(2)
    watched = None if lacks == "watch" else Watched(2, comm)
    error, naps = at_limit(comm, watched, missing=lambda: [0, 3], found=lacks != "call")
    where = "a wait" if lacks == "call" else "barrier (call 1) at p.py:1 main"
    assert str(error) == f"rank 2 waited 8 s in {where} for ranks 0, 6, which did not come"
    assert naps == []


def test_a_message_on_no_communicator_is_the_wires_to_tell(at_limit, monkeypatch):
    comm = member(2)
    at_limit(comm, Watched(2, comm))
    found = stacks.Call("a send", "p.py:1 main", None, comm.wire, 1)
    monkeypatch.setattr(stall.stacks, "current", lambda frame, family: found)
    error = stall.error(comm.wire, "a wait", lambda: [0])
    assert str(error) == "rank 2 waited 8 s in a send at p.py:1 main for rank 0, which did not come"


@pytest.mark.parametrize("found, where", [(True, "barrier (call 1) at p.py:1 main"), (False, "a wait")])
def test_where_failures_are_outlived_those_that_are_frozen_are_ended_and_it_is_one(at_limit, monkeypatch, found, where):
    ended = []
    monkeypatch.setattr(stall.watch, "end_frozen", ended.append)
    stall.outlive()
    error, _ = at_limit(member(2), None, found=found)
    assert type(error) is RankFailed
    assert str(error) == f"rank 2 waited 8 s in vain in {where}"
    assert ended == [where]


def test_a_world_of_one_is_not_watched(monkeypatch):
    did = []
    monkeypatch.setattr(stall.watch, "stop", lambda: did.append("stop"))
    monkeypatch.setattr(stall.watch, "start", lambda world: did.append("start") or watched)
    watched = SimpleNamespace(look=None)
    stall.watch_over(SimpleNamespace(size=1))
    assert did == ["stop"]
    stall.watch_over(SimpleNamespace(size=2))
    assert did == ["stop", "start"]
    assert watched.look.__self__.watched is watched
    assert watched.look.__func__ is stall._Warnings.look


@pytest.mark.parametrize("outlived", [False, True])
def test_where_failures_are_outlived_ranks_that_learnt_nothing_of_each_other_fail_together(monkeypatch, outlived):
    def start(world):
        raise RankFailed("rank 0 waited 8 s in vain")

    revoked = []
    monkeypatch.setattr(stall.watch, "start", start)
    if outlived:
        stall.outlive()
    stall.watch_over(SimpleNamespace(size=2, wire=SimpleNamespace(revoke=lambda: revoked.append(True))))
    assert bool(revoked) == outlived
