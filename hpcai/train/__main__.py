"""`python -m hpcai.train`: parse on rank 0, train on all, end alike on all."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hpcai
from hpcai.comm.communicator import Communicator
from hpcai.comm.launcher import launch
from hpcai.errors import HpcaiError, Leave, RankMismatch
from hpcai.train import config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with these arguments (default: the command line's); returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if config.asks_only(arguments):
        if launch().rank == 0:
            config.parse(arguments)
        return 0
    comm = None
    try:
        comm = hpcai.init()
        options = comm.on_root(lambda: config.parse(arguments))
        from hpcai.train.loop import fit

        fit(options, comm)
    except Leave as left:
        if comm is not None and comm.rank == 0:
            print(f"hpcai.train: {left}", file=sys.stderr, flush=True)
        return left.exit_code
    except (HpcaiError, OSError) as error:
        return _fail(comm, error)
    return 0


def _fail(comm: Communicator | None, error: HpcaiError | OSError) -> int:
    """An error that all ranks share is one line from rank 0; one that only some have ends the job by the excepthook."""
    if comm is not None:
        try:
            comm.leave()
        except RankMismatch:
            raise error from None
    if comm is None or comm.rank == 0:
        print(f"hpcai.train: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return getattr(error, "exit_code", 1)


if __name__ == "__main__":
    sys.exit(main())
