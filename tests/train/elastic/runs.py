"""Runs under Open MPI whose ranks are struck, for the tests of --elastic."""

import re
import subprocess
from pathlib import Path

import pytest

from hpcai.checkpoint import format
from hpcai.comm.wires.ulfm import RECOVERABLE
from hpcai.train import resume
from tests.command import MPIRUN, end, start

FLAGS = ["--steps", "40", "--hidden", "24", "--batch", "64", "--dtype", "f64", "--checkpoint-steps", "20"]
PROGRAM = Path(__file__).parents[1] / "striking.py"


def without_ulfm():
    if not MPIRUN.exists():
        return "there is no mpirun beside this Python"
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
    return "" if "Open MPI" in version else "wants Open MPI"


ulfm = pytest.mark.skipif(bool(without_ulfm()), reason=without_ulfm() or "wants Open MPI")


def struck(tmp_path, strikes, *flags, ranks=4, elastic="shrink", run="run", **variables):
    """Run under mpirun --with-ft ulfm; returns (exit code, stderr). Every strike must have been made."""
    flags = [*FLAGS, "--elastic", elastic, *flags, "--run-dir", tmp_path / run]
    launcher = ["--with-ft", "ulfm", *(["--prtemca", RECOVERABLE, "1"] if elastic == "grow" else [])]
    made = tmp_path / "strikes"
    made.write_text("")
    variables["STRIKES"] = str(made)
    process = start(ranks, *strikes.split(), "--", *flags, program=(PROGRAM,), launcher=launcher, **variables)
    try:
        _, err = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    assert sorted(made.read_text().splitlines()) == sorted(re.findall(r"\d\S? \w+ \d+", strikes)), err
    return process.returncode, err


def parameters(folder):
    return format.read(resume.newest(folder))[1].arrays["params"]
