"""The line that says how far a run is: on a terminal one that is drawn again, elsewhere plain lines now and then."""

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
from types import SimpleNamespace

import pytest

from hpcai.train.report import progress_line
from hpcai.train.report.progress_line import ProgressLine, columns, fitted, terminal

PARTS = ["epoch  1/20", "step    25/100", "loss 0.5000", "1:23 left", "12,345 samples/s"]


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 100 columns, which stderr is, without a launcher: (its other end, its end here)."""
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress_line, "REDRAW_S", 0.0)
    far, near = os.openpty()
    resize(near, 100)
    with os.fdopen(near, "w") as stderr:
        monkeypatch.setattr(progress_line, "sys", SimpleNamespace(stderr=stderr))  # pytest sets sys.stderr itself
        yield far, near
    os.close(far)


def resize(handle, width):
    fcntl.ioctl(handle, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))


def seen(far):
    """All that was written until nothing more comes."""
    assert select.select([far], [], [], 10)[0], "nothing was drawn"
    found = b""
    while select.select([far], [], [], 0.2)[0]:
        found += os.read(far, 1 << 16)
    return found.decode()


def rate():
    return 12345.0


def test_on_a_terminal_one_line_is_drawn_again_and_never_deleted_first(screen):
    line = ProgressLine(100, 50, 0, "samples")
    line.show(1, 0.5, rate)
    line.show(26, 0.25, rate)
    drawn = seen(screen[0]).split("\r")[1:]
    assert len(drawn) == 2
    assert all(one.endswith("\x1b[K") and one.count("\x1b") == 1 and "\n" not in one for one in drawn)
    assert re.fullmatch(r"\[####+\.+\]  epoch 1/2  step  26/100  loss 0\.2500  0 s left  12,345 samples/s", drawn[1][:-3])
    assert "--:-- left" in drawn[0]


def test_it_is_as_wide_as_the_terminal_is_now(screen):
    line = ProgressLine(100, 50, 0, "samples")
    for width in (200, 80, 40, 10, 1):
        resize(screen[1], width)
        line.show(50, 0.5, rate)
        assert len(seen(screen[0]).strip("\r").removesuffix("\x1b[K")) < width


@pytest.mark.parametrize("done", [0.0, 0.5, 1.0])
def test_what_does_not_fit_is_left_out_the_first_parts_last(done):
    for width in range(300):
        found = fitted(PARTS, done, width)
        assert len(found) < max(1, width)
        shown = [part for part in PARTS if part in found]
        assert shown == PARTS[: len(shown)]
    assert fitted(PARTS, done, 300).endswith(progress_line.GAP.join(PARTS))


def test_a_line_that_stays_takes_its_place_and_the_end_leaves_nothing_of_it(screen):
    line = ProgressLine(100, 50, 0, "samples")
    line.show(1, 0.5, rate)
    line.lasting("epoch 1")
    line.close()
    assert seen(screen[0]).endswith("\repoch 1\x1b[K\r\n")
    line.show(2, 0.5, rate)
    line.close()
    line.close()
    assert seen(screen[0]).endswith("\x1b[K\r\x1b[K")


@pytest.mark.parametrize("name, value", [("TERM", "dumb"), ("TERM", None), ("SLURM_JOB_ID", "7")])
def test_a_dumb_terminal_and_a_batch_job_get_plain_lines(screen, monkeypatch, name, value):
    monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress_line, "LINE_S", 0.0)
    line = ProgressLine(100, 50, 0, "samples")
    line.show(1, 0.5, rate)
    line.close()
    assert seen(screen[0]) == "epoch 1/2  step   1/100  loss 0.5000  --:-- left  12,345 samples/s\r\n"


def test_a_pipe_gets_a_plain_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    line = ProgressLine(100, 50, 0, "samples")
    for step in range(1, 100):
        line.show(step, 0.5, rate)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress_line, "LINE_S", 0.0)
    line.show(100, 0.5, rate)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("epoch 2/2  step 100/100  loss 0.5000  0 s left")


def test_under_a_launcher_its_terminal_counts(screen, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    sleeper = subprocess.Popen(["sleep", "60"], stderr=screen[1])
    try:
        monkeypatch.setattr(progress_line, "_launcher_pid", lambda: sleeper.pid)
        found = terminal()
        assert isinstance(found, str)
        assert columns(found) == 100
        monkeypatch.setattr(progress_line, "_launcher_pid", os.getpid)  # whose stderr is no terminal
        assert os.isatty(2) or terminal() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_the_rate_is_computed_for_what_is_drawn_alone(capsys):
    def never():
        raise AssertionError

    ProgressLine(100, 50, 0, "samples").show(1, 0.5, never)
