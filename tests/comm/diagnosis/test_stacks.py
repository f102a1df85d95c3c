"""What a rank tells of its threads: by stacks whose frames belong to methods that a test names."""

import os
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from hpcai.comm.diagnosis import stacks

PROGRAM = "/home/someone/program.py"
DOOR, WIRE = os.path.join(stacks.COMM, "communicator.py"), os.path.join(stacks.COMM, "wires", "requests.py")


def standing(*frames, **names):
    """The innermost frame of a stack that is as said, from the outermost frame on: (file, name, self or None)."""
    names = dict(names)
    inner = "sys._getframe()"
    for i, (file, name, this) in reversed(list(enumerate(frames))):
        names[f"self{i}"] = this
        head = f"def {name}(self):" if this is not None else f"def {name}(this):"
        space = {**names, "sys": sys}
        exec(compile(f"{head}\n return {inner}", file, "exec"), space)
        if file == DOOR and this is not None:
            stacks._methods.add(space[name].__code__)
        if file == WIRE and name == "wait":
            stacks._waits.add(space[name].__code__)
        names[f"call{i}"] = space[name]
        inner = f"call{i}(self{i})"
    return names["call0"](names["self0"])


def comm(ranks=(0, 1, 2), wire=None, **more):
    wire = wire or SimpleNamespace(ranks=list(ranks), waiting_since=0.0, timeout_s=7.0)
    return SimpleNamespace(wire=wire, calls=5, path=(1, 0), waiting_since=0.0, **more)


def request(wire, what="a send", key=("a send", 0, 0, 2, 0)):
    return SimpleNamespace(wire=wire, what=what, key=key)


WHERE = "/home/someone/program.py:2 main"
MAIN = (PROGRAM, "main", None)
MESSAGE = os.path.join(stacks.COMM, "message.py")
MPI = os.path.join(stacks.COMM, "mpi.py")


def test_a_thread_in_no_call():
    assert stacks.current(None, []) is None
    assert stacks.current(standing(MAIN), []) is None
    assert stacks.current(standing(MAIN, (MESSAGE, "wait", "a message")), []) is None
    assert stacks.current(standing(MAIN, (DOOR, "split_by_node", comm())), []) is not None
    assert stacks.current(standing(MAIN, (DOOR, "send", comm())), []) is None
    assert stacks.current(standing(MAIN, (DOOR, "allreduce", None)), []) is None


@pytest.mark.parametrize("kind", ["allreduce", "barrier", "split", "split_by_node", "leave", "allgather_each"])
def test_a_collective_is_named_as_its_program_called_it(kind):
    outer = comm()
    found = stacks.current(standing(MAIN, (DOOR, kind, outer), (DOOR, "_collective", outer)), [])
    said = "left (its program ended)" if kind == "leave" else f"{kind.removesuffix('_each')} (call 5)"
    assert found == stacks.Call(said, WHERE, outer, outer.wire)


@pytest.mark.parametrize("kind, more", [("allreduce", ", now among ranks 1, 2 of them"), ("split", ""), ("split_by_node", "")])
def test_a_collective_made_of_others_is_where_it_has_come_to(kind, more):
    outer, inner = comm(), comm([1, 2])
    frame = standing(MAIN, (DOOR, kind, outer), (MPI, "anything", None), (DOOR, "allgather", inner), (MPI, "agree", None))
    found = stacks.current(frame, [])
    assert found == stacks.Call(f"{kind} (call 5){more}", WHERE, inner, inner.wire)


def test_what_a_collective_is_of_is_read_from_its_frame():
    made = []

    def allreduce(self, x, op="sum", root=0):
        made.append(sys._getframe())

    for x, text in ((np.zeros((2, 3), "f4"), "allreduce of float32[2, 3] op max choice 1 (call 5)"), ([1.0], "op max choice 1")):
        allreduce(comm(), x, "max", 1)
        assert text in stacks._words(made[-1], made[-1].f_locals["self"])


@pytest.mark.parametrize(
    "what, key, text, peer",
    [
        ("a send", ("a send", 0, 0, 2, 0), "a send to rank 12", 2),
        ("a receive", ("a receive", 0, 0, 1, 0), "a receive from rank 11", 1),
        ("an exchange", None, "an exchange", None),
    ],
)
def test_a_message_is_told_with_its_peer_and_its_communicator(what, key, text, peer):
    mine, other = comm([10, 11, 12]), comm()
    frame = standing(MAIN, (MESSAGE, "wait", "a message"), (WIRE, "wait", request(mine.wire, what, key)))
    assert stacks.current(frame, [other, mine]) == stacks.Call(text, WHERE, mine, mine.wire, peer)
    assert stacks.current(frame, [other]) == stacks.Call(text, WHERE, None, mine.wire, peer)


def test_a_request_that_is_only_looked_at_is_no_wait():
    mine = comm()
    assert stacks.current(standing(MAIN, (WIRE, "done", request(mine.wire))), [mine]) is None
    assert stacks.current(standing(MAIN, (MPI, "wait", None)), [mine]) is None


def test_a_wait_within_a_collective_is_the_collectives():
    outer = comm()
    frame = standing(MAIN, (DOOR, "allreduce", outer), (WIRE, "wait", request(outer.wire)))
    assert stacks.current(frame, [outer]) == stacks.Call("allreduce (call 5)", WHERE, outer, outer.wire)


def test_a_call_that_has_ended_further_out_is_none():
    """As a collective whose array's finalizer runs, which is the program's again."""
    outer = comm()
    assert stacks.current(standing(MAIN, (DOOR, "allreduce", outer), MAIN), [outer]) is None


@pytest.mark.parametrize(
    "file, short",
    [
        (f"{stacks.PACKAGE}hpcai/comm/algorithms/ring.py", "hpcai/comm/algorithms/ring.py"),
        (f"{stacks.LIBRARY}queue.py", "queue.py"),
        ("/x/lib/site-packages/torch/nn.py", "torch/nn.py"),
        ("/elsewhere/program.py", "/elsewhere/program.py"),
    ],
)
def test_files_are_named_as_a_person_would_look_for_them(file, short):
    assert stacks._short(file) == short


def test_files_below_here_are_named_from_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert stacks._short(f"{os.getcwd()}/a/program.py") == "a/program.py"


def test_only_the_innermost_frames_are_told_without_pythons_own_and_no_longer_than_a_line():
    frames = [(f"/{i}.py", "f", None) for i in range(20)]
    want = [f"/{i}.py:2 f" for i in range(19, 11, -1)]
    assert stacks.lines(standing(*frames)) == want
    assert stacks.lines(standing(*frames, ("<frozen importlib>", "g", None))) == want
    assert [len(line) for line in stacks.lines(standing(("/" + "x" * 300, "f", None)))[:1]] == [200]
    assert stacks.lines(None) == []
    assert stacks.place(None) == ""


@pytest.fixture
def running(monkeypatch):
    """Threads by name, with the frame that each stands in."""

    def those(**frames):
        numbered = dict(enumerate(frames.items(), 1))
        alive = [SimpleNamespace(ident=i, name=name.replace("_", " ")) for i, (name, _) in numbered.items() if name != "ended"]
        monkeypatch.setattr(stacks.threading, "enumerate", lambda: alive)
        monkeypatch.setattr(stacks.sys, "_current_frames", lambda: {i: frame for i, (_, frame) in numbered.items()})

    monkeypatch.setattr(stacks, "gave_up", {})
    return those


def test_threads_in_collectives_come_first_then_the_main_one_and_the_watchs_own_do_not(running):
    mine = comm()
    waits = standing(MAIN, (DOOR, "allreduce", mine))
    idle = standing(MAIN)
    running(b=idle, MainThread=idle, hpcai_watch=idle, hpcai_ask_3=idle, hpcai_warn=idle, ended=idle, a=idle, z=waits, y=idle)
    told = stacks.tell([mine, comm()])
    assert [name for name, _ in told["stacks"]] == ["z", "MainThread", "a", "a thread"]
    assert told["stacks"][1][1][0] == WHERE
    call = {"text": "allreduce (call 5)", "place": WHERE, "path": [1, 0], "ranks": [0, 1, 2], "waited_s": 0.0}
    assert told["calls"] == [call]
    assert told["made"] == 10


def test_how_long_it_waits_is_told(running):
    mine, now = comm(range(100)), time.monotonic()
    mine.waiting_since = now - 5
    running(MainThread=standing(MAIN, (DOOR, "allreduce", mine)))
    told = stacks.tell([])["calls"][0]
    assert 5 <= told["waited_s"] < 60
    assert told["ranks"] == list(range(64))
    mine.wire.waiting_since = now - 1000
    running(MainThread=standing(MAIN, (WIRE, "wait", request(mine.wire))))
    told = stacks.tell([])["calls"][0]
    assert 1000 <= told["waited_s"] < 1060
    assert told["path"] is None


@pytest.mark.parametrize("ago_s, vain", [(0.0, True), (19.0, True), (21.0, False)])
def test_a_rank_that_gave_up_says_for_some_seconds_that_it_waited(running, monkeypatch, ago_s, vain):
    mine = comm()
    stacks.give_up(stacks.Call("barrier (call 1)", WHERE, mine, mine.wire))
    ((since, told),) = stacks.gave_up.values()
    assert list(stacks.gave_up) == [threading.get_ident()]
    assert 0 <= time.monotonic() - since < 60
    stacks.gave_up = {1: (time.monotonic() - ago_s, told)}
    idle, waits = standing(MAIN), standing(MAIN, (DOOR, "allreduce", mine))
    for frame, said in ((idle, []), (waits, ["allreduce (call 5)"])):
        running(MainThread=frame)
        found = stacks.tell([])["calls"]
        assert [one["text"] for one in found] == (["barrier (call 1)"] if vain else said)
        assert not vain or found[0]["waited_s"] == 7.0
