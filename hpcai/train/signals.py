"""Signals that ask a run to leave. A rank notes the signal, and all ranks agree at the end of a step (see votes.py).

A scheduler sends USR1 or TERM some time before it takes the nodes away. The run then writes a checkpoint and ends with exit code
85, which asks for a restart of the job. The first Ctrl-C does the same without a restart; a second Ctrl-C leaves at once.
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
"""Exit codes: the job asks for a restart; the job was ended by Ctrl-C."""


@contextlib.contextmanager
def cast_into(cast: Array, names: Sequence[str], speaks: bool) -> Iterator[None]:
    """Within this context each of the named signals, and Ctrl-C, casts this rank's vote to leave. speaks: whether Ctrl-C prints
    a line on stderr.

    Only the main thread can have handlers, so a rank that is another thread does not handle signals.
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
    """Return how the run ends after step `step` by all ranks' votes; None if it continues. written: whether the checkpoint is."""
    how = "with a checkpoint" if written else "without a checkpoint of it, which could not be written"
    if counted[votes.INTERRUPT]:
        return Leave(
            f"interrupted: left after step {step:,} {how}; --resume auto continues from the last checkpoint", INTERRUPTED
        )
    if counted[votes.LEAVE]:
        return Leave(
            f"asked to leave: left after step {step:,} {how}; exit code {REQUEUE} asks for a restart with --resume auto",
            REQUEUE,
        )
    return None
