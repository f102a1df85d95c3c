"""What a person reads when a rank does not come, with real processes: slow is told from frozen, and from elsewhere."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcai.comm import limits
from hpcai.comm.diagnosis import stall
from hpcai.errors import RankFailed
from tests.command import needs_mpirun, start

pytestmark = needs_mpirun

PROGRAM = """
import os, signal, sys, time
import numpy as np
import hpcai
comm = hpcai.init()
pair = comm.split(comm.rank // 2)
open(sys.argv[1] + str(comm.rank), "w").write(str(os.getpid()))
comm.allreduce(np.ones(3))
def busy():
    time.sleep(60)
{action}
comm.allreduce(np.ones(100_000))
"""

ALIVE = ["alive and at work", "program.py:10 busy", "answered, so it is alive", "--stall-timeout"]
CASES = {
    "asleep": ("if comm.rank == 1: busy()", "rank 1", ALIVE, ["frozen", "dead", "silent"]),
    "asleep, the lowest": ("if comm.rank == 0: busy()", "rank 0", ALIVE, ["frozen", "dead", "silent"]),
    "stopped": ("if comm.rank == 1: os.kill(os.getpid(), signal.SIGSTOP)", "rank 1", ["rank 1: frozen", "(state T"], ["alive"]),
    "elsewhere": (
        "if comm.rank == 1: pair.allgather(np.ones(6))",
        "rank 1",
        ["in allgather of float64[6] (call 1) of ranks 0, 1 at", "ranks 0, 2, 3: waiting"],
        ["frozen", "dead", "silent", "alive and at work"],
    ),
    "two of four": (
        "if comm.rank in (1, 2): busy()",
        "ranks 1, 2",
        ["ranks 1, 2: alive and at work", "ranks 0, 3: waiting", "program.py:10 busy"],
        ["frozen", "dead", "silent"],
    ),
    "in native code": (
        "if comm.rank == 1: import ctypes; ctypes.PyDLL(None).sleep(60)",
        "rank 1",
        ["rank 1: silent", "may keep Python's lock"],
        ["frozen", "dead"],
    ),
}


def ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("shared", ["0", "1"])
@pytest.mark.parametrize("case", CASES)
def test_the_report_says_what_the_missing_ranks_do_and_the_job_ends(case, shared, tmp_path):
    action, late, words, others = CASES[case]
    (tmp_path / "program.py").write_text(PROGRAM.format(action=action))
    begin = time.perf_counter()
    process = start(4, program=(str(tmp_path / "program.py"), str(tmp_path / "pid")), HPCAI_TIMEOUT_S="3", HPCAI_NODE=shared)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.perf_counter() - begin < 30
    report = [line for line in err.splitlines() if "StallError" in line]
    assert 1 <= len(report) <= (2 if case == "elsewhere" else 1), err
    if (
        case == "elsewhere" and f"for {late}, which" not in report[0]
    ):  # each waits for the other: on a busy machine the other may say so
        assert (
            f"waited 3 s in allgather of float64[6] (call 1) at {tmp_path}/program.py:11 <module> for rank 0, which did"
            in report[0]
        )
        words = ["ranks 2, 3: waiting", "in allreduce of float64[100000] op sum (call 3) of ranks 0-3 at"]
    else:
        assert f"waited 3 s in allreduce of float64[100000] op sum (call 3) at {tmp_path}/program.py:12 <module>" in report[0]
        assert f"for {late}, which did not come" in report[0], err
    for word in words:
        assert word in err, err
    for word in others:
        assert f": {word}" not in err, err
    warnings = [line for line in err.splitlines() if line.startswith("hpcai: ") and "kept others waiting" in line]
    assert 1 <= len(warnings) <= (2 if case == "elsewhere" else 1), err  # there each of two waits for the other
    kept = f"{late} kept others waiting" in "".join(warnings)
    assert kept or (case == "elsewhere" and "rank 0 kept others waiting" in "".join(warnings)), err
    end = time.monotonic() + 10
    for file in tmp_path.glob("pid*"):
        while not ended(int(file.read_text())):
            assert time.monotonic() < end, f"{file.name} is left"
            time.sleep(0.05)


COMING = """
import sys, time, numpy as np, hpcai
comm = hpcai.init()
comm.set_timeout(30)
if comm.rank == 1:
    time.sleep(5)
comm.allreduce(np.ones(3))
sys.stdout.write(f"{comm.rank} {comm.waited_s}\\n")
"""


@pytest.mark.parametrize("shared", ["0", "1"])
def test_a_rank_that_is_only_late_is_warned_of_once_and_waited_for(shared, tmp_path):
    (tmp_path / "program.py").write_text(COMING)
    process = start(3, program=(str(tmp_path / "program.py"),), HPCAI_NODE=shared, HPCAI_TIMEOUT_S="1")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err.count("kept others waiting") == 1, err
    assert "program.py:6 <module>" in err
    waited = {int(rank): float(seconds) for rank, seconds in (line.split() for line in out.splitlines())}
    assert waited[1] < 1
    assert all(4 < waited[rank] < 8 for rank in (0, 2))


STARTING = """
import os, signal
if (os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"]) == "1":
    os.kill(os.getpid(), signal.SIGSTOP)
import hpcai
hpcai.init()
"""


def test_a_rank_that_does_not_come_to_the_start_ends_the_job(tmp_path):
    """Where the others wait within MPI, which lets no thread of Python run."""
    (tmp_path / "program.py").write_text(STARTING)
    begin = time.perf_counter()
    process = start(3, program=(str(tmp_path / "program.py"),), HPCAI_TIMEOUT_S="3")
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert limits.START_S <= time.perf_counter() - begin < limits.START_S + 10
    assert err.count("StallError") == 1, err
    assert f"[rank 0] StallError: MPI did not start on all 3 ranks within {limits.START_S:g} s" in err


def test_training_that_stalls_says_so_once_and_ends_within_its_limit(tmp_path):
    """Not a second time while it tells the others that it ends."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\nimport hpcai\nfrom hpcai.train import __main__, loop\n"
        "inner = loop.train_step\n"
        "def late(*arguments):\n"
        "    if hpcai.init().rank == 1: time.sleep(60)\n"
        "    return inner(*arguments)\n"
        "loop.train_step = late\nsys.exit(__main__.main())\n"
    )
    begin = time.perf_counter()
    process = start(2, "--stall-timeout", "4", "--steps", "5", "--run-dir", tmp_path / "run", program=(str(program),))
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.perf_counter() - begin < 25
    assert err.count("StallError") == 1, err
    assert "for rank 1, which did not come" in err
    assert "program.py:6 late" in err
    assert not any(name.startswith("HPCAI_TIMEOUT") for name in os.environ)


@pytest.mark.parametrize("outlived", [False, True])
def test_where_failures_are_outlived_ranks_that_learnt_nothing_of_each_other_fail_together(monkeypatch, outlived):
    def start(world):
        raise RankFailed("rank 0 waited 8 s in vain")

    revoked = []
    monkeypatch.setattr(stall.watch, "start", start)
    monkeypatch.setattr(stall.waits, "fail", outlived)
    stall.watch_over(SimpleNamespace(size=2, wire=SimpleNamespace(revoke=lambda: revoked.append(True))))
    assert bool(revoked) == outlived
