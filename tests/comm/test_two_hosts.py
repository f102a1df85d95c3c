"""Across a real link: two network namespaces with a slow wire between them, under Open MPI. Needs root and iproute2."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcai.train import checkpoint, resume
from tests.command import MPIRUN, environment, run

SCRIPT = Path(__file__).parents[2] / "bench" / "two_hosts.sh"
PROGRAM = """
import numpy as np, hpcai
from hpcai.comm.background import Background
comm = hpcai.init()
assert not comm.shares_memory and comm.choice.shape.nodes == 2
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
    command = ["bash", SCRIPT, "1gbit", str(per_host), sys.executable, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment(LIMIT_S="90"))
    assert done.returncode == 0, done.stdout + done.stderr
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert "hpcai" not in names
    return done.stdout


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
    assert run(1, *train[2:], "--run", tmp_path / "0")[0] == 0
    for per_host in (1, 2):
        across(per_host, *train, "--run", tmp_path / str(per_host))
    one, *others = (checkpoint.read(resume.newest(tmp_path / name))[1].arrays for name in ("0", "1", "2"))
    for other in others:
        assert all(array.tobytes() == other[name].tobytes() for name, array in one.items())
