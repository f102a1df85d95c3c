"""Time limits of what MPI does not limit, by fakes of the launcher and of the end of a process."""

import threading
from types import SimpleNamespace

import pytest

from hpcai.comm import limits
from hpcai.errors import RanksLost
from tests.comm.ending import Ended


def running_out(ends, limit_s, code, monkeypatch, what="the vote to end", start_s=0.04):
    """Stay within `limited` until it has ended the process."""
    over = threading.Event()
    monkeypatch.setattr(limits, "START_S", start_s)
    monkeypatch.setattr(limits.os, "_exit", lambda code: (ends.append(("exit", code)), over.set()))
    with limits.limited(what, code, limit_s):
        assert over.wait(20)


@pytest.mark.parametrize("start_s, whole", [(0.04, "0.06"), (0.01, "0.04")])
def test_what_mpi_does_not_limit_ends_those_that_are_frozen_and_then_this_process(ends, monkeypatch, capsys, start_s, whole):
    running_out(ends, 0.02, 9, monkeypatch, start_s=start_s)
    assert ends == [("end frozen", "the vote to end"), "last resort", ("exit", 9)]
    err = capsys.readouterr().err
    assert err.startswith(f"StallError: the vote to end did not end within {whole} s; a rank may be frozen")
    assert err.count(" called by ") == limits.SHOWN_FRAMES - 1 == 3
    assert "test_limits.py" in err
    assert "--resume auto" not in err


def test_where_a_restart_is_asked_for_it_says_so(ends, monkeypatch, capsys):
    running_out(ends, 0.02, RanksLost.exit_code, monkeypatch)
    assert "start again with --resume auto" in capsys.readouterr().err


@pytest.mark.parametrize("given, seconds", [(None, 3.0), (0.5, 0.5)])
def test_the_limit_is_that_of_waits_unless_one_is_given_and_the_whole_as_long_again(ends, monkeypatch, given, seconds):
    class Event:
        """One that says for how long it is waited for, and is never set."""

        def __init__(self):
            self.seconds = []

        def wait(self, s):
            self.seconds.append(s)
            return False

        def set(self):
            pass

    class Thread:
        def __init__(self, target, **more):
            self.start = target

    event = Event()
    monkeypatch.setattr(limits.stall, "timeout_s", lambda: 3.0)
    monkeypatch.setattr(limits, "START_S", 2.0)
    monkeypatch.setattr(limits, "threading", SimpleNamespace(Event=lambda: event, Thread=Thread, get_ident=threading.get_ident))
    with pytest.raises(Ended), limits.limited("all", 5, given):
        pass
    assert event.seconds == [seconds, max(seconds, 2.0)]
    assert ends[-1] == ("exit", 5)


@pytest.mark.parametrize("in_time", ["before the limit", "before the whole"])
def test_what_ends_in_time_goes_on(ends, monkeypatch, in_time):
    monkeypatch.setattr(limits, "START_S", 20.0)
    looked = threading.Event()
    monkeypatch.setattr(limits.watch, "end_frozen", lambda what: looked.set())
    with limits.limited("all", 5, 20.0 if in_time == "before the limit" else 0.01):
        if in_time == "before the whole":
            assert looked.wait(20)
    for thread in threading.enumerate():
        if thread.name == "hpcai limit":
            thread.join(20)
            assert not thread.is_alive()
    assert ends == []
    assert looked.is_set() == (in_time == "before the whole")


@pytest.mark.parametrize(
    "launcher, library, starts",
    [
        ("prterun", "Open MPI v5", True),
        ("prted", "Open MPI v5", True),
        ("mpirun", "Open MPI v5", True),
        ("mpiexec", "Open MPI v5", True),
        ("mpirun", "MPICH 5", False),
        ("bash", "Open MPI v5", False),
    ],
)
def test_only_open_mpis_launcher_is_ended_where_it_does_not_end_the_job(monkeypatch, launcher, library, starts):
    started = []
    monkeypatch.setattr(limits.os, "getppid", lambda: 4711)
    monkeypatch.setattr(limits.host, "name", lambda pid: {4711: launcher}[pid])
    monkeypatch.setattr(limits.host, "started", lambda pid: {4711: "99"}[pid])
    monkeypatch.setattr(limits.library, "name", lambda: library)
    monkeypatch.setenv("PMIX_SERVER_TMPDIR", "folder of the job")
    monkeypatch.setattr(limits.subprocess, "Popen", lambda command, **more: started.append((command, more)))
    limits.last_resort()
    assert len(started) == starts
    for command, more in started:
        assert command[:2] == ["sh", "-c"]
        assert command[3:] == ["sh", "4711", "99", str(5 * limits.LAST_RESORT_S), "folder of the job"]
        assert more["start_new_session"] is True
    assert limits.LAST_RESORT_S == 10


def test_a_last_resort_that_cannot_be_had_is_none(monkeypatch):
    def refuse(*arguments, **more):
        raise OSError("no more processes")

    monkeypatch.setattr(limits.host, "name", lambda pid: "prterun")
    monkeypatch.setattr(limits.host, "started", lambda pid: "99")
    monkeypatch.setattr(limits.library, "name", lambda: "Open MPI v5")
    monkeypatch.setattr(limits.subprocess, "Popen", refuse)
    limits.last_resort()


@pytest.mark.parametrize("built", [True, False])
def test_a_deadline_is_the_kernels_where_they_are_built_and_called_off(monkeypatch, built):
    did = []

    class Deadline:
        def __init__(self, *arguments):
            did.append(arguments)

        def call_off(self):
            did.append("off")

    monkeypatch.setattr(limits.native, "kernels", lambda: SimpleNamespace(Deadline=Deadline) if built else None)
    later = SimpleNamespace(
        dump_traceback_later=lambda limit_s, exit: did.append((limit_s, exit)),
        cancel_dump_traceback_later=lambda: did.append("off"),
    )
    monkeypatch.setattr(limits, "faulthandler", later)
    with pytest.raises(ZeroDivisionError), limits.deadline(60.0, 3, "words"):
        raise ZeroDivisionError
    assert did == [(60.0, 3, "words") if built else (60.0, True), "off"]
