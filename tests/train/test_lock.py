"""One run at a time in a folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from hpcai.comm import threads
from hpcai.errors import FolderTaken, UsageError
from hpcai.train import lock, resume
from hpcai.train.lock import Locks
from hpcai.train.loop import fit
from hpcai.train.options import parser
from tests.command import children, start, trains, wait_for
from tests.train.elastic.runs import ulfm
from tests.train.pairs import attempt_pairs

pytestmark = pytest.mark.usefixtures("clean_environment")

HOLDER = """
import sys, time
from pathlib import Path
from hpcai.train.lock import Locks
locks = Locks([Path(sys.argv[1])])
locks.take(0.0)
print("held", flush=True)
if "fork" in sys.argv:
    import os
    if os.fork() == 0:
        time.sleep(60)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a folder's lock; ended with the test."""
    started = []

    def start(folder, *more):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), *more], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_who_holds_a_folder_is_said(tmp_path, holder):
    process = holder(tmp_path)
    with pytest.raises(FolderTaken) as caught:
        Locks([tmp_path]).take(0.0)
    host = os.uname().nodename
    assert f"{tmp_path} is in use by another run (process {process.pid} on {host}, since 20" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 75


def test_a_job_of_slurm_is_said_and_waited_for_longer(tmp_path, monkeypatch):
    assert lock.patience() == lock.PATIENCE_S
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert lock.patience() == lock.PATIENCE_IN_JOB_S
    locks = Locks([tmp_path])
    locks.take()
    locks.close()
    assert "job 40_2, since" in lock.described((tmp_path / lock.NAME).read_bytes())


@pytest.mark.parametrize("more", [(), ("fork",)], ids=["alone", "with a child that lives on"])
def test_any_death_of_the_holder_releases_it_and_it_is_waited_for(tmp_path, holder, more):
    process = holder(tmp_path, *more)
    threading.Timer(0.3, process.kill).start()
    locks = Locks([tmp_path])
    locks.take(20.0)
    locks.close()


def test_a_frozen_holder_holds(tmp_path, holder):
    process = holder(tmp_path)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(FolderTaken):
        Locks([tmp_path]).take(0.2)


def test_a_folder_is_the_same_by_any_name(tmp_path, holder):
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    holder(real)
    for name in ("link", "real/../link/.", "./real"):
        with pytest.raises(FolderTaken):
            Locks([tmp_path / name]).take(0.0)


def test_in_one_process_too_and_a_refusal_releases_nothing(tmp_path, holder):
    """A record lock is lost when the process closes the file by any descriptor."""
    first = Locks([tmp_path, tmp_path])
    first.take(0.0)
    with pytest.raises(FolderTaken, match="in this process"):
        Locks([tmp_path]).take(0.0)
    check = "import sys, pathlib; from hpcai.train.lock import Locks; Locks([pathlib.Path(sys.argv[1])]).take(0.0)"
    done = subprocess.run([sys.executable, "-c", check, str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert f"process {os.getpid()}" in done.stderr
    first.close()
    first.close()
    second = Locks([tmp_path])
    second.take(0.0)
    second.close()


def test_all_folders_or_none(tmp_path, holder):
    holder(tmp_path / "b")
    locks = Locks([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(FolderTaken):
        locks.take(0.0)
    other = Locks([tmp_path / "a"])
    other.take(0.0)
    other.close()


def test_a_lock_file_that_was_deleted_is_locked_anew(tmp_path, holder):
    holder(tmp_path)
    (tmp_path / lock.NAME).unlink()
    locks = Locks([tmp_path])
    locks.take(0.0)
    with pytest.raises(FolderTaken):
        Locks([tmp_path]).take(0.0)
    locks.close()


def test_a_lock_file_that_is_deleted_just_before_it_is_locked_counts_for_nothing(tmp_path, monkeypatch):
    real, times = lock.fcntl.lockf, []

    def lockf(handle, how):
        times.append(handle)
        if len(times) == 1:
            (tmp_path / lock.NAME).unlink()
        real(handle, how)

    monkeypatch.setattr(lock.fcntl, "lockf", lockf)
    locks = Locks([tmp_path])
    locks.take(5.0)
    assert len(times) == 2
    assert lock._key((tmp_path / lock.NAME).stat()) in lock._held
    locks.close()
    assert not lock._held


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)], ids=["FIFO", "folder", "link"]
)
def test_what_is_no_file_is_refused_and_not_followed(tmp_path, make):
    make(tmp_path / lock.NAME)
    with pytest.raises((UsageError, OSError), match=r"\.lock"):
        Locks([tmp_path]).take(0.0)


def test_a_lock_file_of_anything_is_read_with_care(tmp_path):
    for text in (b"", b"[]", b"{", b"\xff\xfe", b'{"host": "\\u001b[2J\\n", "pid": {}}', b"[" * 4096):
        said = lock.described(text)
        assert said.isprintable()


def test_without_locks_a_run_is_warned_and_goes_on(tmp_path, monkeypatch, capsys):
    def none(handle, how):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    locks = Locks([tmp_path])
    locks.take(0.0)
    locks.close()
    assert "cannot be locked (No locks available)" in capsys.readouterr().err


def test_who_takes_over_waits_for_the_lock_in_the_background(tmp_path, holder, capsys):
    process = holder(tmp_path)
    locks = Locks([tmp_path], lock.token_of(tmp_path))
    locks.take_over()
    assert not locks._mine
    assert capsys.readouterr().err == ""
    process.kill()
    process.wait()
    for _ in range(100):
        if locks._mine:
            break
        threading.Event().wait(0.05)
    with pytest.raises(FolderTaken):
        Locks([tmp_path]).take(0.0)
    locks.close()


def test_who_takes_over_ends_where_another_run_was_quicker(tmp_path, holder):
    holder(tmp_path)
    with pytest.raises(FolderTaken, match="is in use by"):
        Locks([tmp_path], "mine").take_over()


def test_who_cannot_take_over_warns_in_a_line_and_goes_on(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    Locks([tmp_path / "file"], "mine").take_over()
    (tmp_path / "odd" / lock.NAME).mkdir(parents=True)
    Locks([tmp_path / "odd"], "mine").take_over()

    def broken(handle, how):
        raise OSError(lock.errno.EIO, "Input/output error")

    monkeypatch.setattr(lock.fcntl, "lockf", broken)
    Locks([tmp_path], "mine").take_over()
    lines = capsys.readouterr().err.splitlines()
    for line, words in zip(lines, ("is a file, but a folder", "directory", "Input/output error"), strict=True):
        assert line.startswith("hpcai: warning: this run continues without its lock")
        assert words in line


def options(tmp_path, *flags):
    return parser.parse(["--run-dir", str(tmp_path / "run"), "--hidden", "8", "--steps", "3", *flags])


@pytest.mark.parametrize(
    "held, flags",
    [
        ("run", []),
        ("run", ["--resume", "auto"]),
        ("run/checkpoints", []),
        ("elsewhere", ["--checkpoint-dir", "elsewhere", "--resume", "auto"]),
        ("run/checkpoints", ["--checkpoint-dir", "run/checkpoints", "--run-dir", "other"]),
    ],
)
def test_a_run_is_refused_on_all_ranks_and_touches_nothing(tmp_path, holder, held, flags, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lock, "PATIENCE_S", 0.0)
    threads.run(1, lambda comm: fit(options(tmp_path), comm))
    holder(tmp_path / held)
    before = contents(tmp_path / "run")

    def program(comm):
        with pytest.raises(FolderTaken, match="is in use by another run"):
            fit(options(tmp_path, *flags), comm)

    threads.run(3, program)
    assert contents(tmp_path / "run") == before


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != lock.NAME]
    return {str(path): path.read_bytes() for path in files}


def test_the_lock_is_held_while_steps_are_made_and_given_back(tmp_path, monkeypatch):
    seen = []

    real = resume.save

    def saved(*arguments):
        for folder in ("run", "run/checkpoints"):
            with pytest.raises(FolderTaken):
                Locks([tmp_path / folder]).take(0.0)
            seen.append(folder)
        return real(*arguments)

    monkeypatch.setattr(resume, "save", saved)
    for _ in range(2):  # the second moves the first one's files aside, and not the locks
        threads.run(1, lambda comm: fit(options(tmp_path), comm))
    assert len(seen) == 4
    for folder in ("run", "run/checkpoints"):
        locks = Locks([tmp_path / folder])
        locks.take(0.0)
        locks.close()
    assert (tmp_path / "run/previous-1/checkpoints/step-000000003").is_dir()
    assert not (tmp_path / "run/previous-1/checkpoints" / lock.NAME).exists()
    assert json.loads((tmp_path / "run/.lock").read_text())["pid"] == os.getpid()


def test_of_two_runs_in_one_folder_one_trains(tmp_path):
    done = attempt_pairs(tmp_path, pairs=2, seed=0)
    assert done.wrong == []
    assert done.pairs == 2


@ulfm
def test_when_rank_0_dies_the_next_one_takes_the_lock(tmp_path):
    flags = ["--epochs", "4000", "--hidden", "32", "--elastic", "shrink", "--run-dir", tmp_path / "run"]
    process = start(3, *flags, launcher=["--with-ft", "ulfm"], errors=tmp_path / "stderr")

    def holder_of(folder):
        return json.loads((folder / lock.NAME).read_text())

    try:
        wait_for(lambda: trains(tmp_path / "run"), limit=60)
        first = holder_of(tmp_path / "run")
        os.kill(first["pid"], signal.SIGKILL)
        wait_for(lambda: holder_of(tmp_path / "run")["pid"] != first["pid"], limit=60)
        then = holder_of(tmp_path / "run")
        assert then["pid"] in children(process)
        assert then["token"] == first["token"]
        for folder in ("run", "run/checkpoints"):
            with pytest.raises(FolderTaken, match=f"process {then['pid']} "):
                Locks([tmp_path / folder]).take(0.0)
        wait_for(lambda: "failed; 2 go on" in (tmp_path / "stderr").read_text(), limit=60)
    finally:
        for pid in [*children(process), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()


def test_a_folder_of_checkpoints_is_locked_whatever_its_spelling(tmp_path):
    for spelt in (f"{tmp_path}/kept", f"file://{tmp_path}/kept"):
        assert resume.folders(parser.parse(["--run-dir", str(tmp_path), "--checkpoint-dir", spelt]))[1] == tmp_path / "kept"
    assert resume.folders(parser.parse(["--run-dir", str(tmp_path), "--checkpoint-dir", "s3://bucket/kept"])) == [tmp_path]


def test_who_waits_for_a_lock_says_so_once_and_not_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "SAID_AFTER_S", 5.0)
    monkeypatch.setattr(lock, "PAUSE_S", 0.0)
    clock = iter([0.0, 1.0, 4.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(lock.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(Locks, "_attempt", lambda self: "another has it")
    heard = []
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: heard.append(capsys.readouterr().err))
    with pytest.raises(FolderTaken):
        Locks([tmp_path]).take(7.0)
    assert [line != "" for line in heard] == [False, False, True, False]
    assert "another has it; waiting for it, 7 s at most" in heard[2]
