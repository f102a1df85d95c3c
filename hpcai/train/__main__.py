"""`python -m hpcai.train`: rank 0 parses the options, all ranks train, and all ranks end in the same way."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hpcai
from hpcai.comm import job
from hpcai.comm.launch.launcher import launch
from hpcai.errors import HpcaiError, one_line
from hpcai.train.ending import ending
from hpcai.train.options import parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the command line); return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if parser.asks_only(arguments):
            if launch().rank == 0:
                parser.parse(arguments)
            return 0
        comm = hpcai.init()
    except HpcaiError as error:
        print(f"hpcai.train: error: {one_line(error)}", file=sys.stderr, flush=True)
        return job.exit_code(error)

    def train() -> None:
        options = comm.on_root(lambda: parser.parse(arguments))
        if options.dry_run or options.find_lr:
            from hpcai.train import rehearsal

            rehearsal.run(options, comm)
        else:
            from hpcai.train.loop import fit

            fit(options, comm)

    return ending(train)


if __name__ == "__main__":
    sys.exit(main())
