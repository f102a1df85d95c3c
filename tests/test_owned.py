"""What a killed process left is removed by the next, and what belongs to others stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import owned

OWNER = "import sys, time; from tests import owned; print(owned.folder('try', sys.argv[1]), flush=True); time.sleep(float(sys.argv[2]))"


def made_by(below, seconds):
    process = subprocess.Popen([sys.executable, "-c", OWNER, below, str(seconds)], stdout=subprocess.PIPE, text=True)
    return process, Path(process.stdout.readline().strip())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="knows processes by /proc")
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    ended, of_ended = made_by(tmp_path, 0)
    ended.communicate(timeout=10)
    assert not of_ended.exists()
    killed, of_killed = made_by(tmp_path, 60)
    alive, of_alive = made_by(tmp_path, 60)
    killed.kill()
    killed.communicate(timeout=10)
    other = tmp_path / of_killed.name.replace(owned._here(), "0" * 8)  # of another machine
    other.mkdir()
    unknown = tmp_path / "hpcai-try-something"
    unknown.mkdir()
    assert of_killed.exists()
    mine = owned.folder("try", tmp_path)
    assert set(tmp_path.iterdir()) == {of_alive, other, unknown, mine}
    alive.send_signal(signal.SIGKILL)
    alive.communicate(timeout=10)
    pid = os.fork()
    if pid == 0:
        owned._remove(mine, os.getppid())
        os._exit(0)
    os.waitpid(pid, 0)
    assert mine.exists()
    owned._remove(mine, os.getpid())
    assert not mine.exists()
