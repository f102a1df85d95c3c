"""Programs as a person starts them: real processes under the launcher that lies beside this Python."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

MPIRUN = Path(sys.executable).parent / "mpirun"
needs_mpirun = pytest.mark.skipif(not MPIRUN.exists(), reason="there is no mpirun beside this Python")


def environment(**more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HPCAI_", "PMI", "OMPI_COMM"))}
    allow = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    return kept | allow | more


def pretend(monkeypatch, folder, **programs):
    """Shell scripts by name, first on the path."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def start(ranks, *arguments, program=("-m", "hpcai.train"), launcher=(), errors=None, **more):
    """The launcher's process; what it says on stderr goes to a pipe, or to the file `errors`."""
    command = [MPIRUN, *launcher, "-n", str(ranks), sys.executable, *program, *map(str, arguments)]
    if errors is None:
        return subprocess.Popen(command, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with errors.open("w") as file:
        return subprocess.Popen(command, env=environment(**more), stdout=subprocess.DEVNULL, stderr=file)


def run(ranks, *arguments, limit=60, **more):
    process = start(ranks, *arguments, **more)
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def children(process, program=b"hpcai.train"):
    """The ranks that a launcher started, by their command line."""
    found, tasks = [], [process.pid]
    while tasks:
        pid = tasks.pop()
        kids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        tasks += [int(kid) for kid in kids]
        found += [
            int(kid)
            for kid in kids
            if program in Path(f"/proc/{kid}/cmdline").read_bytes() and b"mpirun" not in Path(f"/proc/{kid}/cmdline").read_bytes()
        ]
    return [pid for pid in found if b"proxy" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for(what, limit=30):
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
