"""What is said of ranks that were asked: every state of a silent one, and every kind of answer, in words."""

from types import SimpleNamespace

import pytest

from hpcai.comm.diagnosis import findings
from hpcai.comm.diagnosis.watch import Answer
from hpcai.comm.launch.host import Process

THERE = Process("node7", "boot", "pids", 4711, "99", 5000, ("10.0.0.7",))
SILENT = THERE._replace(port=0)
STACK = [f"program.py:{line} busy" for line in (10, 20)]


def doing(text="allreduce of float64[3] (call 2)", ranks=(0, 1), waited_s=0.0, path=()):
    return {"text": text, "place": "program.py:9 main", "path": list(path), "ranks": list(ranks), "waited_s": waited_s}


def told(*calls, stacks=(("MainThread", STACK),), made=0):
    return Answer({"calls": list(calls), "stacks": [list(one) for one in stacks], "made": made}, True, "", THERE)


@pytest.mark.parametrize(
    "answer, words",
    [
        (Answer(None, False, "T", THERE), "frozen: process 4711 on node7 is stopped (state T, as by SIGSTOP)"),
        (Answer(None, True, "t", THERE), "frozen: process 4711 on node7 is stopped (state t, as by SIGSTOP)"),
        (Answer(None, False, "T", SILENT), "frozen: process 4711 on node7 is stopped (state T, as by SIGSTOP)"),
        (Answer(None, False, "gone", THERE), "dead: process 4711 on node7 has ended"),
        (Answer(None, True, "Z", SILENT), "dead: process 4711 on node7 has ended"),
        (Answer(None, False, "X", THERE), "dead: process 4711 on node7 has ended"),
        (Answer(None, True, "D", THERE), "frozen in I/O: process 4711 on node7 waits for a device (state D)"),
        (Answer(None, False, "D", SILENT), "frozen in I/O: process 4711 on node7 waits for a device (state D)"),
        (
            Answer(None, False, "S", SILENT),
            "silent: it could open no socket by which to answer; process 4711 on node7 is in state S",
        ),
        (Answer(None, False, "", SILENT), "silent: it could open no socket by which to answer"),
        (
            Answer(None, True, "R", THERE),
            "silent: process 4711 on node7 lives (state R) but does not answer; native code may keep Python's lock",
        ),
        (Answer(None, False, "S"), "silent: its process lives (state S) but does not answer; native code may keep Python's lock"),
        (
            Answer(None, True, "", THERE),
            "frozen or overloaded: node7 takes calls, but process 4711 on node7 does not answer",
        ),
        (Answer(None, True), "frozen or overloaded: its host takes calls, but its process does not answer"),
        (Answer(None, False, "", THERE), "dead or unreachable: no connection to process 4711 on node7"),
        (Answer(None), "dead or unreachable: no connection to its process"),
    ],
)
def test_a_rank_that_gave_no_answer(answer, words):
    for short in (False, True):
        assert findings.grouped({3: answer}, [3], short) == [(words, [3])]


@pytest.mark.parametrize(
    "answer, long, short",
    [
        (
            told(doing(waited_s=2.04)),
            "waiting 2.0 s in allreduce of float64[3] (call 2) of ranks 0, 1 at program.py:9 main",
            None,
        ),
        (
            told(doing("split (call 1)"), doing(waited_s=0.5)),
            "waiting 0.5 s in allreduce of float64[3] (call 2) of ranks 0, 1 at program.py:9 main",
            None,
        ),
        (
            told(doing(waited_s=1.0, ranks=[4, 5, 6]), doing("barrier (call 9)", waited_s=3.0), stacks=()),
            "waiting 1.0 s in allreduce of float64[3] (call 2) of ranks 4-6 at program.py:9 main",
            None,
        ),
        (
            told(doing(), doing("barrier (call 9)"), made=1234),
            "alive and at work (collectives called so far: 1,234)\n"
            "  in MainThread: program.py:10 busy\n    called by program.py:20 busy",
            "alive, in allreduce of float64[3] (call 2) of ranks 0, 1 at program.py:9 main",
        ),
        (
            told(stacks=[("MainThread", STACK), ("other", STACK[1:])]),
            "alive and at work (collectives called so far: 0)\n"
            "  in MainThread: program.py:10 busy\n    called by program.py:20 busy\n  in other: program.py:20 busy",
            "alive and at work at program.py:10 busy",
        ),
        (
            told(stacks=[("MainThread", [])]),
            "alive and at work (collectives called so far: 0)\n  in MainThread: ",
            "alive and at work at an unknown place",
        ),
        (
            told(stacks=()),
            "alive and at work (collectives called so far: 0)",
            "alive and at work at an unknown place",
        ),
    ],
)
def test_a_rank_that_answered(answer, long, short):
    assert findings.grouped({0: answer}, [0]) == [(long, [0])]
    assert findings.grouped({0: answer}, [0], short=True) == [(short or long, [0])]


@pytest.mark.parametrize(
    "ranks, words",
    [
        ([0], "rank 0"),
        ([0, 1], "ranks 0, 1"),
        ([2, 3, 4], "ranks 2-4"),
        ([2, 3, 5], "ranks 2, 3, 5"),
        ([2, 4, 6], "ranks 2, 4, 6"),
        (list(range(64)), "ranks 0-63"),
        ([*range(8), 9], "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 1 more"),
    ],
)
def test_the_ranks_of_a_communicator(ranks, words):
    assert findings._members(ranks) == words


def test_ranks_that_say_the_same_stand_together_with_the_longest_wait():
    answers = {
        0: told(doing(waited_s=1.0)),
        1: told(doing("barrier (call 1)", waited_s=9.0)),
        2: told(doing(waited_s=3.0)),
        3: told(doing(waited_s=2.0)),
    }
    place = "of ranks 0, 1 at program.py:9 main"
    assert findings.grouped(answers, [3, 2, 1, 0]) == [
        (f"waiting 3.0 s in allreduce of float64[3] (call 2) {place}", [3, 2, 0]),
        (f"waiting 9.0 s in barrier (call 1) {place}", [1]),
    ]
    assert findings.grouped(answers, []) == []


def test_late_are_members_that_do_not_wait_in_this_communicator():
    waits = {"waited_s": 1.0, "path": (1, 0)}
    answers = {
        9: told(),
        5: told(doing(**waits)),
        4: told(doing(path=(1, 0))),
        3: told(doing(waited_s=1.0)),
        2: Answer(None),
        1: told(doing(path=(1, 0)), doing(waited_s=1.0), doing(**waits)),
        0: told(),
    }
    comm = SimpleNamespace(path=(1, 0), wire=SimpleNamespace(ranks=range(1, 6)))
    assert findings.late(answers, comm) == [2, 3, 4]


def test_the_report_begins_with_those_that_are_late_and_ends_with_advice():
    answers = {0: told(doing(waited_s=1.0)), 1: told(stacks=()), 2: Answer(None), 3: told(stacks=())}
    waiting = "waiting 1.0 s in allreduce of float64[3] (call 2) of ranks 0, 1 at program.py:9 main"
    work, dead = "alive and at work (collectives called so far: 0)", "dead or unreachable: no connection to its process"
    advice = "if only slow, wait longer than 2.5 s: --stall-timeout of hpcai.train, or $HPCAI_TIMEOUT_S"
    assert findings.report(answers, iter([1, 2, 3]), 2.5) == [
        f"ranks 1, 3: {work}",
        f"rank 2: {dead}",
        f"rank 0: {waiting}",
        f"ranks 1, 3 answered, so they are alive; {advice}",
    ]
    assert findings.report(answers, [2], 2.5) == [f"rank 2: {dead}", f"rank 0: {waiting}", f"ranks 1, 3: {work}"]
    assert findings.report(answers, [3], 2.5)[-1] == f"rank 3 answered, so it is alive; {advice}"


@pytest.mark.parametrize("more", [0, 1, 2])
def test_only_so_many_different_answers_are_shown(more):
    answers = {rank: told(made=rank) for rank in range(16 + more)}
    lines = findings.report(answers, [], 1.0)
    assert len([line for line in lines if ": alive and at work" in line]) == 16
    assert lines[16:] == ([f"and {more} other answers, not shown"] if more else [])
