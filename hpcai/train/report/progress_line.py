"""The line that says how far a run is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from hpcai.comm.launch.launcher import launch

REDRAW_S, LINE_S = 0.1, 10.0
"""Between two lines on a terminal, and elsewhere."""

SHORTEST_BAR, LONGEST_BAR, GAP, USUAL_COLUMNS = 8, 40, "  ", 80


class ProgressLine:
    """One line on stderr that is redrawn on a terminal; elsewhere a plain line every ten seconds and at each epoch's end."""

    def __init__(self, steps: int, steps_per_epoch: int, done: int, unit: str):
        self.unit = unit
        self.steps, self.epochs, self.steps_per_epoch = steps, -(-steps // steps_per_epoch), steps_per_epoch
        self.terminal = terminal()
        self.drawn, self.is_there = perf_counter(), False
        self._first: tuple[int, float] | None = None

    def show(self, step: int, loss: float, samples_per_s: Callable[[], float]) -> None:
        """After step number `step` (from 1)."""
        now = perf_counter()
        if self._first is None:  # kernels are compiled or loaded in the first step, which says nothing of the others
            self._first = step, now
        if now - self.drawn >= (LINE_S if self.terminal is None else REDRAW_S):
            parts = self._parts(step, loss, samples_per_s(), now)
            self._write(GAP.join(parts) if self.terminal is None else fitted(parts, step / self.steps, columns(self.terminal)))
            self.drawn = now

    def lasting(self, text: str) -> None:
        """Print a line that stays."""
        self._write(text, lasting=True)

    def close(self) -> None:
        """Leave nothing of a line that was to be drawn again."""
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
        else:  # over the former text, of which the rest goes: to delete it first would flicker
            sys.stderr.write(f"\r{text}\x1b[K" + ("\n" if lasting else ""))
            self.is_there = not lasting
        sys.stderr.flush()


def fitted(parts: Sequence[str], done: float, width: int) -> str:
    """Return one line of less than `width` columns: as many of the parts as fit, the first ones first, and before them a bar of
    the share that is done, if it fits.

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
    """The terminal, as a descriptor or a path, on which a person watches the progress line; None where nobody does.

    Under a launcher a rank's own stderr says nothing: it may be a pipe though a person watches, or a terminal of the launcher's
    making though the output goes to a file. So the launcher's stderr is asked. A batch job is never watched, and a dumb
    terminal cannot draw a line again.
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
    """Return the terminal's width."""
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
    """The ancestor that is the launcher (its helpers on this node stand between it and the ranks); 0 if it is elsewhere."""
    found, pid = 0, os.getppid()
    while pid > 1:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        found = pid if name.startswith(("mpirun", "mpiexec", "prterun", "orterun", "srun")) else found
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return found


def _of(count: int, total: int) -> str:
    """Return a count of a total, padded, so that the text behind it does not move."""
    return f"{count:>{len(f'{total:,}')},}/{total:,}"


def duration(seconds: float) -> str:
    """Return a duration as people write it: 12 s, 3:04, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
