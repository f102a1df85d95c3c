"""`python -m hpcai.train`: parse on rank 0, train on all, end alike on all."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

import hpcai
from hpcai.comm.launcher import launch
from hpcai.errors import HpcaiError, Leave, RankFailed, StallError, one_line
from hpcai.train import config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with these arguments (default: the command line's); returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if config.asks_only(arguments):
            if launch().rank == 0:
                config.parse(arguments)
            return 0
        comm = hpcai.init()
    except HpcaiError as error:
        from hpcai.comm import job

        print(f"hpcai.train: error: {one_line(error)}", file=sys.stderr, flush=True)
        return job.exit_code(error)

    def train() -> None:
        options = comm.on_root(lambda: config.parse(arguments))
        from hpcai.train.loop import fit

        fit(options, comm)

    return ending(train)


def ending(train: Callable[[], object]) -> int:
    """Call it, say on rank 0 how it ended, and return the exit code."""
    try:
        train()
    except Leave as left:
        return _end(left.exit_code, f"{left}")
    except (HpcaiError, OSError) as error:
        _share(error)
        return _end(getattr(error, "exit_code", 1), f"error: {one_line(error)}")
    return _end(0)


def _share(error: HpcaiError | OSError) -> None:
    """Return if all ranks have the error; one that only some have ends the job by the excepthook."""
    if isinstance(error, (StallError, RankFailed)):
        raise error  # to ask the others would be to wait for them again
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
    from hpcai.comm import job

    return job.end(code)


if __name__ == "__main__":
    sys.exit(main())
