"""The end of training, alike on all ranks: one line on rank 0, and the same exit code everywhere."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import hpcai
from hpcai.comm import job
from hpcai.errors import HpcaiError, Leave, RankFailed, RankMismatch, StallError, one_line


def ending(train: Callable[[], object]) -> int:
    """Call it, say on rank 0 how it ended, and return the exit code."""
    try:
        train()
    except Leave as left:
        return _end(left.exit_code, f"{left}")
    except (HpcaiError, OSError) as error:
        _share(error)
        try:
            return _end(getattr(error, "exit_code", 1), f"error: {one_line(error)}")
        except RankMismatch:
            raise error from None
    return _end(0)


def _share(error: HpcaiError | OSError) -> None:
    """Return if all ranks have the error; one that only some have ends the job by the excepthook."""
    if isinstance(error, (StallError, RankFailed)):
        raise error  # to ask the others would be to wait for them again
    if job.outlives():
        return  # they are asked at the end
    try:
        hpcai.init().leave()
    except HpcaiError:
        raise error from None


def _end(code: int, text: str = "") -> int:
    """hpcai.init() gives the ranks that are left."""
    if text and hpcai.init().rank == 0:
        print(f"hpcai.train: {text}", file=sys.stderr, flush=True)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # too late to mean anything
    return job.end(code)
