"""The start and the end of a job, by fakes of MPI, the launcher and the end of a process."""

import contextlib
import sys
import threading
from types import SimpleNamespace

import pytest

from hpcai.comm import job, limits
from hpcai.comm.launch.launcher import Launch
from hpcai.comm.wires import ulfm
from hpcai.errors import CheckpointError, LaunchError, RankFailed, RankMismatch, RanksLost, StallError, UsageError
from tests.comm.ending import Ended


@pytest.mark.parametrize("enabled", ["0", "1"])
def test_a_wait_in_vain_asks_for_a_restart_only_where_ranks_may_be_outlived(monkeypatch, enabled):
    monkeypatch.setenv(ulfm.ENABLED, enabled)
    assert RanksLost.exit_code not in (0, 1, StallError("").exit_code)
    assert job.exit_code(StallError("late")) == (RanksLost.exit_code if enabled == "1" else StallError("").exit_code)
    assert job.exit_code(ZeroDivisionError()) == 1
    assert job.exit_code(UsageError("wrong")) == UsageError("").exit_code
    assert job.exit_code(CheckpointError("none")) == CheckpointError("").exit_code
    assert job.exit_code(RanksLost("two")) == RanksLost.exit_code


@pytest.mark.parametrize("outlived, enabled", [(False, "0"), (True, "0"), (False, "1")])
def test_where_ranks_have_failed_or_may_a_program_ends_after_a_vote(ends, monkeypatch, outlived, enabled):
    asked = []
    world = SimpleNamespace(leave=lambda: asked.append("leave"), wire=SimpleNamespace(all_agree=lambda fine: asked.append(fine)))
    monkeypatch.setattr(job._job, "world", world)
    monkeypatch.setattr(job._job, "replaced", outlived)
    monkeypatch.setenv(ulfm.ENABLED, enabled)
    if not outlived and enabled == "0":
        assert job.end(4) == 4
        assert asked == ends == []
        return
    with pytest.raises(Ended):
        job.end(4)
    assert asked == ["leave", True]
    assert ends == [("exit", 4)]


def test_where_the_others_recover_it_ends_without_one(ends, monkeypatch):
    def leave():
        raise RankFailed("another")

    monkeypatch.setattr(job._job, "world", SimpleNamespace(leave=leave))
    monkeypatch.setattr(job._job, "replaced", True)
    with pytest.raises(Ended):
        job.end(4)
    assert ends == [("exit", 4)]


def test_what_is_adopted_is_the_world(monkeypatch):
    monkeypatch.setattr(job._job, "world", None)
    monkeypatch.setattr(job._job, "replaced", False)
    job.adopt("those that live")
    assert job.init() == "those that live"
    assert job._job.replaced is True


@pytest.mark.parametrize(
    "size, world, name, rank, library, raises",
    [
        (1, 1, "", 0, "MPICH 5", None),
        (4, 4, "srun", 1, "MPICH 5", None),
        (4, 2, "srun", 1, "MPICH 5", None),
        (4, 1, "srun", 0, "MPICH 5", "started 4 processes.*Start with srun --mpi=pmi2, or install"),
        (4, 1, "srun", 0, "Open MPI v5", "Start with srun --mpi=pmix, or install"),
        (
            4,
            1,
            "MPICH's or Intel's mpiexec",
            0,
            "Open MPI v5",
            "Start with the launcher of Open MPI v5, here .*mpirun -n 4 ..., or",
        ),
        (4, 1, "srun", 2, "MPICH 5", SystemExit),
    ],
)
def test_ranks_that_are_each_alone_are_refused_by_rank_0s_words(monkeypatch, tmp_path, size, world, name, rank, library, raises):
    (tmp_path / "mpirun").write_text("")
    monkeypatch.setattr(job.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(job, "launch", lambda: Launch(name, rank, size, size))
    monkeypatch.setattr(job.library, "name", lambda: library)
    slept = []
    monkeypatch.setattr(job, "time", SimpleNamespace(sleep=slept.append))
    MPI = SimpleNamespace(COMM_WORLD=SimpleNamespace(size=world))
    if raises is None:
        job._refuse_singletons(MPI)
    elif raises is SystemExit:
        with pytest.raises(SystemExit) as ended:
            job._refuse_singletons(MPI)
        assert ended.value.code == 1
        assert slept[0] >= 0.5  # rank 0's words come before the launcher ends it
    else:
        with pytest.raises(LaunchError, match=raises):
            job._refuse_singletons(MPI)


def test_without_an_mpirun_beside_python_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(job.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(job, "launch", lambda: Launch("mpiexec", 0, 2, 2))
    monkeypatch.setattr(job.library, "name", lambda: "MPICH 5")
    with pytest.raises(LaunchError, match="Start with the launcher of MPICH 5, or install"):
        job._refuse_singletons(SimpleNamespace(COMM_WORLD=SimpleNamespace(size=1)))


@pytest.mark.parametrize(
    "rank, size, timeout_s, enabled, limit_s, code",
    [
        (0, 3, 300.0, "0", 300.0, 1),
        (2, 3, 300.0, "0", 302.0, 1),
        (70, 100, 300.0, "1", 305.0, RanksLost.exit_code),
        (0, 3, 1.0, "0", 15.0, 1),
    ],
)
def test_the_start_is_limited_as_waits_are_but_not_below_15_s(monkeypatch, rank, size, timeout_s, enabled, limit_s, code):
    made = []
    monkeypatch.setattr(job, "launch", lambda: Launch("srun", rank, size, size))
    monkeypatch.setattr(job.stall, "timeout_s", lambda: timeout_s)
    monkeypatch.setattr(limits, "deadline", lambda *arguments: made.append(arguments))
    monkeypatch.setenv(ulfm.ENABLED, enabled)
    job._deadline_of_start()
    assert made[0][:2] == (limit_s, code)
    assert f"[rank {rank}] StallError: MPI did not start on all {size} ranks within {max(15.0, timeout_s):g} s" in made[0][2]


def test_a_world_of_one_waits_for_nobody_at_its_start(monkeypatch):
    monkeypatch.setattr(job, "launch", lambda: Launch("", 0, 1, 1))
    monkeypatch.setattr(limits, "deadline", None)
    with job._deadline_of_start():
        pass


@pytest.mark.parametrize("rank, slept", [(0, 0), (1, 1), (7, 1)])
def test_variables_that_make_no_sense_are_refused_first_by_rank_0(monkeypatch, rank, slept):
    naps = []

    def check():
        raise UsageError("wrong")

    monkeypatch.setattr(job.environment, "check", check)
    monkeypatch.setattr(job, "launch", lambda: Launch("srun", rank, 8, 8))
    monkeypatch.setattr(job, "time", SimpleNamespace(sleep=naps.append))
    with pytest.raises(UsageError):
        job._check_environment()
    assert naps == [slept]


@pytest.fixture
def hooks(monkeypatch):
    """What is registered for the end, and what the hooks did."""
    done = SimpleNamespace(aborted=[], naps=[], left=[], forked=[], unregistered=[], order=[])
    comm = SimpleNamespace(Abort=lambda code: (done.aborted.append(code), done.order.append("abort")))
    done.world = SimpleNamespace(rank=2, size=3, wire=SimpleNamespace(comm=comm), leave=lambda: None)
    monkeypatch.setattr(job, "init", lambda: done.world)
    monkeypatch.setattr(limits, "last_resort", lambda: done.order.append("last resort"))
    monkeypatch.setattr(job, "time", SimpleNamespace(sleep=done.naps.append))
    monkeypatch.setattr(job.sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(job.threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(job, "atexit", SimpleNamespace(register=done.left.append, unregister=done.unregistered.append))
    monkeypatch.setattr(job.os, "register_at_fork", lambda after_in_child: done.forked.append(after_in_child))
    monkeypatch.setenv(ulfm.ENABLED, "0")
    return done


def raised(error):
    """The same with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return type(caught), caught, caught.__traceback__


@pytest.mark.parametrize(
    "error, code, words",
    [
        (KeyboardInterrupt(), 130, ["[rank 2] interrupted"]),
        (StallError("late\nby far"), StallError("").exit_code, ["[rank 2] StallError: late", "[rank 2] by far"]),
        (ZeroDivisionError("here"), 1, None),
    ],
)
def test_an_error_that_nobody_catches_ends_the_job_with_words_that_name_the_rank(hooks, capsys, error, code, words):
    job._install_hooks(hooks.world)
    sys.excepthook(*raised(error))
    lines = capsys.readouterr().err.splitlines()
    assert hooks.aborted == [code]
    assert hooks.order == ["last resort", "abort"]
    assert hooks.naps[0] == pytest.approx(0.8)
    assert hooks.naps[1] > 0
    if words is None:
        assert lines[0] == "[rank 2] Traceback (most recent call last):"
        assert lines[-1] == "[rank 2] ZeroDivisionError: here"
        assert any("test_job.py" in line for line in lines)
    else:
        assert lines == words


def test_ranks_speak_in_turn_but_none_later_than_4_s(hooks):
    job._install_hooks(hooks.world)
    for rank, nap in ((0, 0.0), (1, 0.4), (9, 3.6), (10, 4.0), (500, 4.0)):
        hooks.world.rank = rank
        hooks.naps.clear()
        sys.excepthook(*raised(KeyboardInterrupt()))
        assert hooks.naps[0] == pytest.approx(nap)


@pytest.mark.parametrize("value", [ZeroDivisionError("there"), None])
def test_so_does_one_on_a_thread(hooks, capsys, value):
    job._install_hooks(hooks.world)
    threading.excepthook(SimpleNamespace(exc_type=ZeroDivisionError, exc_value=value, exc_traceback=None))
    assert hooks.aborted == [1]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_rank_that_ends_while_others_wait_ends_the_job(hooks, capsys):
    def leave():
        raise UsageError("others wait")

    job._install_hooks(hooks.world)
    hooks.left[0]()
    assert hooks.aborted == []
    hooks.world.leave = leave
    hooks.left[0]()
    assert hooks.aborted == [UsageError("").exit_code]
    assert capsys.readouterr().err == "[rank 2] UsageError: others wait\n"


def test_a_forked_child_is_no_rank(hooks):
    job._install_hooks(hooks.world)
    assert sys.excepthook is not sys.__excepthook__
    hooks.forked[0]()
    assert hooks.unregistered == hooks.left
    assert sys.excepthook is sys.__excepthook__
    assert threading.excepthook is threading.__excepthook__


def test_a_world_of_one_ends_as_any_program_but_for_errors_of_hpcai(hooks, capsys, monkeypatch):
    hooks.world.size = 1
    before = threading.excepthook
    shown = []
    monkeypatch.setattr(sys, "__excepthook__", lambda kind, error, trace: shown.append(kind))
    job._install_hooks(hooks.world)
    assert threading.excepthook is before
    assert hooks.left == hooks.forked == []
    with pytest.raises(SystemExit, match="2"):
        sys.excepthook(*raised(UsageError("no such\noption")))
    assert capsys.readouterr().err == "UsageError: no such option\n"
    sys.excepthook(*raised(ZeroDivisionError()))
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    sys.excepthook(*raised(UsageError("where people type")))
    assert shown == [ZeroDivisionError, UsageError]


def test_a_new_rank_takes_the_wire_of_all(monkeypatch):
    limited = []

    @contextlib.contextmanager
    def limit(*arguments, **more):
        limited.append((arguments, more))
        yield

    merged = []
    parent = SimpleNamespace(Merge=lambda high: merged.append(high) or "merged")
    MPI = SimpleNamespace(Comm=SimpleNamespace(Get_parent=lambda: parent))
    monkeypatch.setattr(limits, "deadline", limit)
    monkeypatch.setattr(limits, "limited", limit)
    monkeypatch.setattr(job.library, "load", lambda: MPI)
    monkeypatch.setattr(job.mpi, "MpiWire", lambda comm: ("wire", comm))
    assert job.merged() == ("wire", "merged")
    assert merged == [True]
    assert limited == [((60.0,), {"code": 0}), (("joining the others", RanksLost.exit_code, 30.0), {})]


def test_a_new_rank_whose_others_failed_meanwhile_is_no_failure(ends, monkeypatch):
    def load():
        raise LaunchError("no more")

    monkeypatch.setattr(job.library, "load", load)
    with pytest.raises(Ended):
        job.merged()
    assert ends == [("exit", 0)]


@pytest.mark.parametrize("rank, native, words", [(0, False, True), (1, False, False), (0, True, False)])
def test_a_start_gives_the_world_and_rank_0_says_what_is_slow(monkeypatch, capsys, rank, native, words):
    did = []
    wire = SimpleNamespace(rank=rank)
    monkeypatch.setattr(job, "_check_environment", lambda: did.append("environment"))
    monkeypatch.setattr(job, "_deadline_of_start", contextlib.nullcontext)
    monkeypatch.setattr(job.library, "load", lambda: SimpleNamespace(COMM_WORLD=SimpleNamespace(Dup=lambda: "dup")))
    monkeypatch.setattr(job, "_refuse_singletons", lambda MPI: did.append("singletons"))
    monkeypatch.setattr(job.mpi, "MpiWire", lambda comm: {"dup": wire}[comm])
    monkeypatch.setattr(job, "Communicator", lambda wire: wire)
    monkeypatch.setattr(job.stall, "watch_over", lambda world: did.append("watch"))
    monkeypatch.setattr(job, "_install_hooks", lambda world: did.append("hooks"))
    monkeypatch.setattr(job.cores, "share_cores", lambda: did.append("cores"))
    monkeypatch.setattr(job.ops, "is_native", lambda: native)
    monkeypatch.setattr(job.environment, "say_unknown", lambda who: did.append("unknown"))
    monkeypatch.setattr(job._job, "world", None)
    assert job.init() is wire
    assert job.init() is wire
    assert did == ["environment", "singletons", "watch", "hooks", "cores", *["unknown"] * (rank == 0)]
    assert ("native kernels are not built" in capsys.readouterr().err) is words
    hooked = []
    monkeypatch.setattr(job._job, "replaced", False)
    monkeypatch.setattr(job, "_install_hooks", hooked.append)
    other = SimpleNamespace(rank=1)
    assert job.join(other) is job.init() is other
    assert hooked == [other]


@pytest.mark.parametrize("alone", [False, True])
def test_an_error_of_all_ranks_is_one_line_and_its_code(hooks, capsys, monkeypatch, alone):
    """Of which one rank believes falsely that all have it, it ends the job like any other."""

    def leave():
        if alone:
            raise RankMismatch("others wait")

    monkeypatch.setattr(job._job, "replaced", False)
    hooks.world.leave, hooks.world.rank = leave, 0
    job._install_hooks(hooks.world)
    error = UsageError("no such\noption")
    error.everywhere = True
    with contextlib.nullcontext() if alone else pytest.raises(SystemExit, match="2"):
        sys.excepthook(*raised(error))
    said = capsys.readouterr().err
    assert hooks.order == (["last resort", "abort"] if alone else [])
    assert said == ("[rank 0] UsageError: no such\n[rank 0] option\n" if alone else "UsageError: no such option\n")
