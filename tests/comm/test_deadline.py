"""The end of a process in which no thread of Python gets its turn, with the kernels and without."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, time
from hpcai.comm import limits
from hpcai.ops import native
if sys.argv[1] == "numpy":
    native._native = None
with limits.deadline(float(sys.argv[2]), code=7, words="too late\\n"):
    ctypes.PyDLL(None).usleep(1_000_000)  # with Python's lock
time.sleep(1.5)  # until after the deadline, which was called off
print("in time")
"""


def run(how, limit_s):
    done = subprocess.run([sys.executable, "-c", PROGRAM, how, str(limit_s)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("how", ["native", "numpy"])
def test_what_ends_in_time_goes_on(how):
    assert run(how, 2) == (0, "in time\n", "")


@pytest.mark.parametrize("how, code, words", [("native", 7, "too late\n"), ("numpy", 1, "Timeout (0:00:00.300000)!")])
def test_what_does_not_is_ended(how, code, words):
    ended, out, err = run(how, 0.3)
    assert (ended, out) == (code, "")
    assert err.startswith(words)
