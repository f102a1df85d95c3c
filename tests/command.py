"""Programs as a person starts them: real processes under the launcher that lies beside this Python."""

import contextlib
import ctypes
import functools
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import owned

PR_SET_PDEATHSIG = 1
MPIRUN = Path(sys.executable).parent / "mpirun"
needs_mpirun = pytest.mark.skipif(not MPIRUN.exists(), reason="there is no mpirun beside this Python")


def environment(**more):
    not_kept = ("HPCAI_", "PMI", "OMPI_COMM", "OPENBLAS_CORETYPE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(not_kept)}
    allow = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    return kept | allow | {"TMPDIR": str(folder_of_launchers())} | more


@functools.cache
def folder_of_launchers():
    """Theirs, as Open MPI's fails on the folder that one with the same process number left when it was killed."""
    return owned.folder("launchers")


def pretend(monkeypatch, folder, **programs):
    """Shell scripts by name, first on the path."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def start(ranks, *arguments, program=("-m", "hpcai.train"), launcher=(), errors=None, **more):
    """The launcher's process, which ends with this one; what it says on stderr goes to a pipe, or to the file `errors`."""
    command = [MPIRUN, *launcher, "-n", str(ranks), sys.executable, *program, *map(str, arguments)]
    how = {"env": environment(**more), "preexec_fn": end_with_this_process}
    if errors is None:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)
    with errors.open("w") as file:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, **how)


LIBC = ctypes.CDLL(None)


def end_with_this_process(how=signal.SIGTERM):
    """In a child of it, for however it ends: launchers take TERM as an order to end their ranks too."""
    for number in (signal.SIGINT, signal.SIGHUP):  # a shell cannot trap what it finds ignored, as below nohup
        signal.signal(number, signal.SIG_DFL)
    if hasattr(LIBC, "prctl"):
        LIBC.prctl(PR_SET_PDEATHSIG, how)


def end(process):
    """Kill a launcher and all that it started: a frozen rank would stay when its launcher is gone."""
    for pid in (*descendants(process.pid), process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def run(ranks, *arguments, limit=60, **more):
    process = start(ranks, *arguments, **more)
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    return process.returncode, out, err


def children(process, program=b"hpcai.train"):
    """The ranks that a launcher started, by their command line."""
    return [pid for pid in descendants(process.pid) if program in (line := command_line(pid)) and not LAUNCHERS.search(line)]


LAUNCHERS = re.compile(rb"mpirun|proxy|prterun")


def descendants(pid):
    """All processes that come of that one and live."""
    found, tasks = [], [pid]
    while tasks:
        task = tasks.pop()
        with contextlib.suppress(OSError):  # it has ended
            kids = [int(kid) for kid in Path(f"/proc/{task}/task/{task}/children").read_text().split()]
            tasks += kids
            found += kids
    return found


def command_line(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def trains(run):
    """Whether a run has made its first step: its metrics have a line. (The file itself is there earlier, to see if it can be.)"""
    with contextlib.suppress(FileNotFoundError):
        return (run / "metrics.jsonl").stat().st_size > 0
    return False


def wait_for(what, limit=30):
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
