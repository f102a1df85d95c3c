"""The progress line, which shows how far a run is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from hpcai.comm.launch.launcher import launch

REDRAW_S, LINE_S = 0.1, 10.0
"""Seconds between two updates of the line on a terminal, and between two lines elsewhere."""

SHORTEST_BAR, LONGEST_BAR, GAP, USUAL_COLUMNS = 8, 40, "  ", 80


class ProgressLine:
    """The progress of a run on stderr. On a terminal one line is redrawn; elsewhere a plain line is added every ten seconds."""

    def __init__(self, steps: int, steps_per_epoch: int, done: int, unit: str):
        self.unit = unit
        self.steps, self.epochs, self.steps_per_epoch = steps, -(-steps // steps_per_epoch), steps_per_epoch
        self.terminal = terminal()
        self.drawn, self.is_there = perf_counter(), False
        self._first: tuple[int, float] | None = None

    def show(self, step: int, loss: float, samples_per_s: Callable[[], float]) -> None:
        """Show the progress after step number `step` (from 1), if it is time to."""
        now = perf_counter()
        if self._first is None:  # the first step compiles or loads kernels, so its time does not predict the others
            self._first = step, now
        if now - self.drawn >= (LINE_S if self.terminal is None else REDRAW_S):
            parts = self._parts(step, loss, samples_per_s(), now)
            self._write(GAP.join(parts) if self.terminal is None else fitted(parts, step / self.steps, columns(self.terminal)))
            self.drawn = now

    def lasting(self, text: str) -> None:
        """Print a line that is not redrawn."""
        self._write(text, lasting=True)

    def close(self) -> None:
        """Erase the line that would have been redrawn."""
        if self.is_there:
            self._write("")
            self.is_there = False

    def _parts(self, step: int, loss: float, samples_per_s: float, now: float) -> list[str]:
        assert self._first is not None
        first, began = self._first
        left = "--:--" if step == first else duration((now - began) / (step - first) * (self.steps - step))
        epoch = min(self.epochs, (step - 1) // self.steps_per_epoch + 1)
        return [
            f"epoch {_of(epoch, self.epochs)}",
            f"step {_of(step, self.steps)}",
            f"loss {loss:.4f}",
            f"{left} left",
            f"{samples_per_s:,.0f} {self.unit}/s",
        ]

    def _write(self, text: str, lasting: bool = False) -> None:
        if self.terminal is None:
            sys.stderr.write(text + "\n")
        else:  # write over the former text and erase the rest of it; erasing first would flicker
            sys.stderr.write(f"\r{text}\x1b[K" + ("\n" if lasting else ""))
            self.is_there = not lasting
        sys.stderr.flush()


def fitted(parts: Sequence[str], done: float, width: int) -> str:
    """Return one line of less than `width` columns: as many of the first parts as fit, and before them a bar of the fraction
    `done`, if it fits.

    >>> fitted(["epoch 1/2", "step 25/100", "loss 0.5"], 0.25, 45)
    '[##......]  epoch 1/2  step 25/100  loss 0.5'
    >>> fitted(["epoch 1/2", "step 25/100", "loss 0.5"], 0.25, 30)
    'epoch 1/2  step 25/100'
    """
    shown, room = list(parts), width - 1
    while len(shown) > 1 and len(GAP.join(shown)) > room:
        shown.pop()
    text = GAP.join(shown)[: max(0, room)]
    bar = min(LONGEST_BAR, room - len(text) - len(GAP) - 2)
    if bar < SHORTEST_BAR:
        return text
    filled = int(bar * done)
    return f"[{'#' * filled}{'.' * (bar - filled)}]{GAP}{text}"


def terminal() -> int | str | None:
    """Return the terminal, as a descriptor or a path, on which a user watches the progress line; None if there is none.

    Under a launcher a rank's own stderr does not tell: it may be a pipe although a user watches, or a terminal made by the
    launcher although the output goes to a file. So this function looks at the launcher's stderr. Nobody watches a batch job, and
    a dumb terminal cannot redraw a line.
    """
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown") or (
        "SLURM_JOB_ID" in os.environ and "SLURM_PTY_PORT" not in os.environ
    ):
        return None
    if not launch().name:
        return sys.stderr.fileno() if sys.stderr.isatty() else None
    try:
        path = f"/proc/{_launcher_pid()}/fd/2"
        return path if os.readlink(path).startswith(("/dev/pts/", "/dev/tty")) else None
    except OSError:
        return None


def columns(terminal: int | str) -> int:
    """Return the terminal's width in columns."""
    try:
        if isinstance(terminal, int):
            return os.get_terminal_size(terminal).columns or USUAL_COLUMNS
        handle = os.open(terminal, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            return os.get_terminal_size(handle).columns or USUAL_COLUMNS
        finally:
            os.close(handle)
    except OSError:
        return USUAL_COLUMNS


def _launcher_pid() -> int:
    """Return the process id of the launcher, the highest such ancestor of this rank; 0 if it runs on another node.

    The launcher's helpers on this node may be between the launcher and the ranks.
    """
    found, pid = 0, os.getppid()
    while pid > 1:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        found = pid if name.startswith(("mpirun", "mpiexec", "prterun", "orterun", "srun")) else found
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return found


def _of(count: int, total: int) -> str:
    """Return a count of a total, padded so that the text after it does not move."""
    return f"{count:>{len(f'{total:,}')},}/{total:,}"


def duration(seconds: float) -> str:
    """Return a duration as text: 12 s, 3:04, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
