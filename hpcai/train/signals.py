"""Signals that ask a run to leave: they are noted, and all ranks agree at a step's end (see votes.py).

A scheduler sends USR1 or TERM some time before it takes the nodes away: then a checkpoint is written and the exit code, 85, asks
for the job to be started again. The first Ctrl-C means the same without a restart; a second one leaves at once.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from hpcai.errors import Leave
from hpcai.train import votes
from hpcai.xp import Array

REQUEUE, INTERRUPTED = 85, 130
"""Exit codes: start me again; ended by Ctrl-C."""


@contextlib.contextmanager
def cast_into(cast: Array, names: Sequence[str], speaks: bool) -> Iterator[None]:
    """While this lasts each of the named signals, and Ctrl-C, cast this rank's vote to leave. `speaks`: says so on stderr.

    Handlers belong to the main thread; ranks that are other threads leave signals alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        cast[votes.LEAVE] = 1

    def interrupt(number: int, frame: object) -> None:
        if cast[votes.INTERRUPT]:
            raise KeyboardInterrupt
        cast[votes.INTERRUPT] = 1
        if speaks:
            print("hpcai: leaving with a checkpoint after this step; Ctrl-C again leaves at once", file=sys.stderr, flush=True)

    handlers = {signal.Signals[f"SIG{name}"]: leave for name in names} | {signal.SIGINT: interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check(counted: Array, step: int, written: bool = True) -> Leave | None:
    """Return how the run ends after step `step`, by all ranks' votes; None if it goes on. written: whether the checkpoint is."""
    how = "with a checkpoint" if written else "without a checkpoint of it, which could not be written"
    if counted[votes.INTERRUPT]:
        return Leave(f"interrupted: left after step {step:,} {how}; --resume auto goes on from the last one", INTERRUPTED)
    if counted[votes.LEAVE]:
        return Leave(
            f"asked to leave: left after step {step:,} {how}; exit code {REQUEUE} asks for a restart with --resume auto",
            REQUEUE,
        )
    return None
