"""The end of training, the same on all ranks: rank 0 prints one line, and every rank returns the same exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import hpcai
from hpcai.comm import job
from hpcai.errors import HpcaiError, Leave, RankFailed, RankMismatch, StallError, one_line


def ending(train: Callable[[], object]) -> int:
    """Call `train`, print on rank 0 why it ended early, if it did, and return the exit code."""
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
    """Return if all ranks have the error. Raise an error that only some ranks have; the excepthook then ends the job."""
    if isinstance(error, (StallError, RankFailed)):
        raise error  # asking the other ranks would mean waiting for them again
    if job.outlives():
        return  # the other ranks are asked at the end
    try:
        hpcai.init().leave()
    except HpcaiError:
        raise error from None


def _end(code: int, text: str = "") -> int:
    """Print the text on rank 0 of the ranks that are left (hpcai.init() returns them), and end with this code."""
    if text and hpcai.init().rank == 0:
        print(f"hpcai.train: {text}", file=sys.stderr, flush=True)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a signal has no effect any more
    return job.end(code)
