"""Across a real link: two network namespaces with a slow wire between them, under Open MPI. Needs root and iproute2."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcai.checkpoint import format
from hpcai.train import resume
from tests.command import MPIRUN, descendants, end_with_this_process, environment, run, wait_for

SCRIPT = Path(__file__).parents[2] / "bench" / "two_hosts.sh"
PROGRAM = """
import numpy as np, hpcai
from hpcai.comm.background import Background
comm = hpcai.init()
assert not comm.shares_memory and comm.selection().shape.nodes == 2
carrier = Background()
for algorithm in ("auto", "ring", "halving_doubling", "hierarchical"):
    for name in ("float32", "float16"):
        for n in (1, 1000, 300_001):
            x = ((np.arange(n) % 61) * (comm.rank + 1)).astype(name)
            carrier.start(lambda: comm.allreduce(x, algorithm=algorithm))
            carrier.wait()
            assert (x == ((np.arange(n) % 61) * (comm.size * (comm.size + 1) // 2)).astype(name)).all(), (algorithm, name, n)
print("fine", comm.rank)
"""


def refused():
    if not MPIRUN.exists() or "Open MPI" not in subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout:
        return "wants Open MPI"
    if os.geteuid() or not shutil.which("ip") or not shutil.which("tc"):
        return "wants root and iproute2"
    made = subprocess.run(["unshare", "--net", "--uts", "ip", "link", "add", "hp0", "type", "veth", "peer", "name", "hp1"])
    return "" if made.returncode == 0 else "network namespaces are not allowed here"


def across(per_host, *command):
    """Run a command on two hosts; returns what it printed."""
    process = started(per_host, *command, LIMIT_S="90")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    assert not namespaces(process)
    return out


def started(per_host, *command, **variables):
    command = ["bash", SCRIPT, "1gbit", str(per_host), sys.executable, *map(str, command)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
        preexec_fn=end_with_this_process,
    )


def namespaces(process):
    """Those of this process of the script, not of others, which may run beside."""
    return list(Path("/run/netns").glob(f"hpcai-{process.pid}-*"))


@pytest.mark.parametrize("per_host", [1, 2])
def test_every_algorithm_across_a_link(per_host, tmp_path):
    if why := refused():
        pytest.skip(why)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    lines = across(per_host, program).splitlines()
    assert sorted(line for line in lines if line.startswith("fine")) == [f"fine {rank}" for rank in range(2 * per_host)]


def test_reproducible_training_gives_the_same_bits_across_a_link_as_on_one_rank(tmp_path):
    if why := refused():
        pytest.skip(why)
    train = ("-m", "hpcai.train", "--compress", "reproducible", "--steps", "100", "--hidden", "64,32")
    assert run(1, *train[2:], "--run-dir", tmp_path / "0")[0] == 0
    for per_host in (1, 2):
        across(per_host, *train, "--run-dir", tmp_path / str(per_host))
    one, *others = (format.read(resume.newest(tmp_path / name))[1].arrays for name in ("0", "1", "2"))
    for other in others:
        assert all(array.tobytes() == other[name].tobytes() for name, array in one.items())


def struck(tmp_path, epochs, **how):
    """Training across two hosts, struck after its first checkpoint; returns exit code, seconds from then to the end, stderr."""
    if why := refused():
        pytest.skip(why)
    sign, run_folder = tmp_path / "now", tmp_path / "run"
    flags = ["--hidden", "64", "--checkpoint-steps", "20", "--stall-timeout", "4", "--epochs", epochs, "--run-dir", run_folder]
    process = started(1, "-m", "hpcai.train", *flags, LIMIT_S="60", STRIKE=str(sign), **how)
    wait_for(lambda: process.poll() is not None or (run_folder.exists() and resume.newest(run_folder)), limit=60)
    sign.touch()
    begin = time.perf_counter()
    _, err = process.communicate(timeout=90)
    return process.returncode, time.perf_counter() - begin, err


def test_a_link_that_comes_back_costs_the_time_it_was_away(tmp_path):
    code, _, err = struck(tmp_path, 20, CUT_S="2")
    assert code == 0, err
    assert resume.newest(tmp_path / "run").name == "step-000000240"


def test_a_link_that_is_cut_for_good_ends_the_job_with_who_is_missing(tmp_path):
    code, seconds, err = struck(tmp_path, 5000)
    assert code not in (0, 124)  # 137: mpirun was ended, since it could not end itself
    assert "waited 4 s in" in err
    assert "for rank 1, which did not come" in err or "for rank 0, which did not come" in err
    assert seconds < 40


def test_a_lost_host_ends_the_job_and_the_run_goes_on_elsewhere(tmp_path):
    """Open MPI's launcher ends with 0 then, which is why the batch script looks whether all nodes are there (slurm/)."""
    _, seconds, _ = struck(tmp_path, 5000, KILL="1")
    assert seconds < 20
    step = int(resume.newest(tmp_path / "run").name.split("-")[1])
    flags = ["--hidden", "64", "--steps", step + 5, "--resume", "auto", "--run-dir", tmp_path / "run"]
    code, _, err = run(2, "--checkpoint-steps", "0", *flags)
    assert code == 0, err
    assert int(resume.newest(tmp_path / "run").name.split("-")[1]) == step + 5


WAITING = """
import time, pathlib, sys, hpcai
comm = hpcai.init()
pathlib.Path(sys.argv[1], str(comm.rank)).touch()
time.sleep(60)
"""


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "KILL"])
@pytest.mark.parametrize("early", [True, False])
def test_a_signal_at_any_time_leaves_nothing_behind(tmp_path, name, early):
    """While namespaces are made, or while ranks are at work. After SIGKILL processes end, and the next start removes the rest."""
    if why := refused():
        pytest.skip(why)
    folder = tmp_path / "temporary"
    folder.mkdir()
    process = started(1, "-c", WAITING, tmp_path, LIMIT_S="60", TMPDIR=str(folder))
    wait_for(lambda: namespaces(process) if early else (tmp_path / "0").exists() and (tmp_path / "1").exists())
    below = descendants(process.pid)
    process.send_signal(signal.Signals[f"SIG{name}"])
    process.communicate(timeout=30)
    assert process.returncode in (128 + signal.Signals[f"SIG{name}"], -signal.Signals[f"SIG{name}"])
    wait_for(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()])
    if name == "KILL":
        assert namespaces(process)
        subprocess.run(
            ["bash", SCRIPT, "no rate", "1", "true"], capture_output=True, timeout=30, env=environment(TMPDIR=str(folder))
        )
    assert not namespaces(process)
    assert not list(folder.iterdir())
