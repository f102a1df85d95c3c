"""Whether ranks may outlive others, and what Open MPI is told for it."""

import signal
from types import SimpleNamespace

import pytest

from hpcai.comm.wires import ulfm
from hpcai.errors import RanksLost


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """This process keeps living when its parent ends."""
    for name in (ulfm.ENABLED, ulfm.COLLECTIVES, ulfm.TRANSPORTS):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
        monkeypatch.delenv(name)
    ended = []
    monkeypatch.setattr(ulfm, "_end_with_launcher", lambda: ended.append(True))
    return ended


@pytest.mark.parametrize("said, enabled", [(None, False), ("", False), ("0", False), ("1", True), ("11", False)])
def test_the_launcher_says_so(monkeypatch, said, enabled):
    if said is not None:
        monkeypatch.setenv(ulfm.ENABLED, said)
    assert ulfm.enabled() is enabled


@pytest.mark.parametrize(
    "chosen, wanted",
    [
        (None, "^han"),
        ("", "^han"),
        ("^tuned", "^tuned,han"),
        ("^han", "^han"),
        ("^tuned,han", "^tuned,han"),
        ("basic,han", "basic,han"),
        ("basic", "basic"),
    ],
)
@pytest.mark.parametrize("transports", [None, "self,sm,tcp"])
def test_han_and_sm_are_left_out_unless_the_user_chose(monkeypatch, alone, chosen, wanted, transports):
    if chosen is not None:
        monkeypatch.setenv(ulfm.COLLECTIVES, chosen)
    if transports is not None:
        monkeypatch.setenv(ulfm.TRANSPORTS, transports)
    ulfm.prepare()
    assert (ulfm.os.environ.get(ulfm.COLLECTIVES), ulfm.os.environ.get(ulfm.TRANSPORTS)) == (chosen, transports)
    assert alone == []
    monkeypatch.setenv(ulfm.ENABLED, "1")
    ulfm.prepare()
    assert ulfm.os.environ[ulfm.COLLECTIVES] == wanted
    assert ulfm.os.environ[ulfm.TRANSPORTS] == (transports or "^sm")
    assert alone == [True]


def test_why_ranks_cannot_outlive_others(monkeypatch):
    monkeypatch.setattr(ulfm, "_launcher_says", lambda name: False)
    assert "MPICH 5.0.2 cannot go on without a failed rank" in ulfm.why_not("MPICH 5.0.2")
    assert ulfm.why_not("Open MPI v5").endswith("start with mpirun --with-ft ulfm")
    assert ulfm.why_not("Open MPI v5", growing=True).endswith(
        "start with mpirun --with-ft ulfm --prtemca state_base_recoverable 1"
    )
    monkeypatch.setenv(ulfm.ENABLED, "1")
    assert "coll/han gives wrong sums" in ulfm.why_not("Open MPI v5")
    monkeypatch.setenv(ulfm.COLLECTIVES, "basic,han")
    assert "coll/han gives wrong sums" in ulfm.why_not("Open MPI v5")
    for fine in ("^han", "^tuned,han", "basic"):
        monkeypatch.setenv(ulfm.COLLECTIVES, fine)
        assert ulfm.why_not("Open MPI v5") == ""
        assert "state_base_recoverable" in ulfm.why_not("Open MPI v5", growing=True)
    monkeypatch.setattr(ulfm, "_launcher_says", lambda name: name == ulfm.RECOVERABLE)
    assert ulfm.why_not("Open MPI v5", growing=True) == ""


@pytest.mark.parametrize(
    "launcher, arguments, environ, says",
    [
        ("prterun", ["--prtemca", "state_base_recoverable", "1"], [], True),
        ("mpirun", ["--prtemca", "state_base_recoverable", "1"], [], True),
        ("mpiexec", [], ["HOME=/root", "PRTE_MCA_state_base_recoverable=1"], True),
        ("prterun", ["--with-ft", "ulfm"], ["HOME=/root"], False),
        ("prterun", ["state_base_recoverable_too"], ["PRTE_MCA_state_base_recoverable=0"], False),
        ("prted", [], [], True),
        ("bash", [], [], True),
        ("mpirun", None, [], True),
    ],
)
def test_what_a_launcher_on_this_node_was_given_is_read_from_proc(monkeypatch, tmp_path, launcher, arguments, environ, says):
    """One on another node cannot be looked at."""
    if arguments is not None:
        (tmp_path / "cmdline").write_text("\0".join([launcher, *arguments, ""]))
        (tmp_path / "environ").write_text("\0".join([*environ, ""]))
    monkeypatch.setattr(ulfm.os, "getppid", lambda: 4711)
    monkeypatch.setattr(ulfm.host, "name", lambda pid: {4711: launcher}[pid])
    monkeypatch.setattr(ulfm, "Path", lambda path: {"/proc/4711": tmp_path}[path])
    assert ulfm._launcher_says("state_base_recoverable") is says


@pytest.mark.parametrize("enabled, counts", [("1", {1, 2, 3, 4, 5, 6}), ("0", {1, 2, 3})])
def test_errors_without_a_class_are_failures_only_where_ranks_may_fail(monkeypatch, enabled, counts):
    names = ["PROC_FAILED", "PROC_FAILED_PENDING", "REVOKED", "OTHER", "INTERN", "UNKNOWN", "TRUNCATE"]
    classes = SimpleNamespace(**{f"ERR_{name}": number for number, name in enumerate(names, 1)})
    monkeypatch.setenv(ulfm.ENABLED, enabled)
    for number in range(1, 8):
        error = SimpleNamespace(Get_error_class=lambda: number)  # noqa: B023
        assert ulfm.is_failure(classes, error) == (number in counts)


END_WITH_LAUNCHER = ulfm._end_with_launcher


@pytest.mark.parametrize("parents, ended", [([7, 7], []), ([7, 1], [RanksLost.exit_code])])
def test_the_kernel_ends_a_rank_with_its_launcher(monkeypatch, parents, ended):
    """Also one whose launcher ended before the kernel was told so."""
    told, codes, left = [], [], iter(parents)
    monkeypatch.setattr(ulfm.ctypes, "CDLL", lambda name: SimpleNamespace(prctl=lambda *words: told.append(words)))
    monkeypatch.setattr(ulfm.os, "getppid", lambda: next(left))
    monkeypatch.setattr(ulfm.os, "_exit", codes.append)
    END_WITH_LAUNCHER()
    assert told == [(1, signal.SIGKILL)]
    assert codes == ended


def test_without_prctl_nothing_is_done(monkeypatch):
    monkeypatch.setattr(ulfm.ctypes, "CDLL", lambda name: SimpleNamespace())
    monkeypatch.setattr(ulfm.os, "_exit", None)
    END_WITH_LAUNCHER()
