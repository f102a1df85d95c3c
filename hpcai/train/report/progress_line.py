"""The line that says how far a run is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import perf_counter

from hpcai.comm.launch.launcher import launch

REDRAW_S, LINE_S = 0.1, 10.0
"""Between two lines on a terminal, and elsewhere."""


class ProgressLine:
    """One line on stderr that is redrawn on a terminal; elsewhere a plain line every ten seconds and at each epoch's end."""

    def __init__(self, steps: int, steps_per_epoch: int, done: int, unit: str):
        self.unit = unit
        self.steps, self.epochs, self.steps_per_epoch = steps, -(-steps // steps_per_epoch), steps_per_epoch
        self.first, self.started = done, perf_counter()
        self.live = on_terminal()
        self.drawn = self.started

    def show(self, step: int, loss: float, samples_per_s: float) -> None:
        """After step number `step` (from 1)."""
        now = perf_counter()
        if now - self.drawn >= (REDRAW_S if self.live else LINE_S):
            self._write(self._line(step, loss, samples_per_s))
            self.drawn = now

    def lasting(self, text: str) -> None:
        """A line that stays."""
        self._write(text, lasting=True)

    def _line(self, step: int, loss: float, samples_per_s: float) -> str:
        left = (perf_counter() - self.started) / max(1, step - self.first) * (self.steps - step)
        filled = 20 * step // self.steps
        epoch = min(self.epochs, (step - 1) // self.steps_per_epoch + 1)
        return (
            f"[{'#' * filled}{'.' * (20 - filled)}] epoch {epoch}/{self.epochs}  step {step:,}/{self.steps:,}  "
            f"loss {loss:.4f}  {samples_per_s:,.0f} {self.unit}/s  {duration(left)} left"
        )

    def _write(self, text: str, lasting: bool = False) -> None:
        if self.live:
            shown = text if lasting else text[: columns() - 1]  # a longer one would go on in the next line, and stay there
            sys.stderr.write(f"\r\x1b[K{shown}" + ("\n" if lasting else ""))
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def on_terminal() -> bool:
    """Whether a person watches the progress line.

    Under a launcher a rank's own stderr says nothing: it may be a pipe though a person watches, or a terminal of the launcher's
    making though the output goes to a file. So the launcher's stderr is asked. A batch job is never watched.
    """
    if ("SLURM_JOB_ID" in os.environ and "SLURM_PTY_PORT" not in os.environ) or os.environ.get("TERM") == "dumb":
        return False
    if not launch().name:
        return sys.stderr.isatty()
    try:
        return os.readlink(f"/proc/{_launcher_pid()}/fd/2").startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False


def columns() -> int:
    """Of the terminal that a person watches, which is the launcher's where there is one; 80 where it does not say."""
    try:
        if not launch().name:
            return os.get_terminal_size(2).columns or 80
        with open(f"/proc/{_launcher_pid()}/fd/2") as terminal:
            return os.get_terminal_size(terminal.fileno()).columns or 80
    except OSError:
        return 80


def _launcher_pid() -> int:
    """The ancestor that is the launcher (its helpers on this node stand between it and the ranks); 0 if it is elsewhere."""
    found, pid = 0, os.getppid()
    while pid > 1:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        found = pid if name.startswith(("mpirun", "mpiexec", "prterun", "orterun", "srun")) else found
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return found


def duration(seconds: float) -> str:
    """As people say it: 12 s, 3:04, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
