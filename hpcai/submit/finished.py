"""`python -m hpcai.submit.finished OPTIONS`: whether the run that options of hpcai.train describe is finished, by its files.

Exit code 0: the run is finished. 3: it is not. Another: that cannot be determined. Batch scripts call this, since a launcher's
exit code 0 does not distinguish a finished run from a run that lost a node.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hpcai.checkpoint import naming
from hpcai.errors import HpcaiError, UsageError
from hpcai.submit import checks, walltime
from hpcai.train import resume
from hpcai.train.options import parser
from hpcai.train.options.options import Options

NOT_FINISHED = 3
"""The exit code for a run that is not finished."""

BOUNDS = ("data", "batch", "epochs", "steps", "validation", "patience")
"""Options that determine how many steps a run has."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with these arguments (default: the command line's); returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if parser.asks_only(given):
        return 0
    try:
        return 0 if finished(parser.parse(given)) else NOT_FINISHED
    except (HpcaiError, OSError) as error:
        print(f"hpcai.submit: cannot determine whether the run is finished: {error}", file=sys.stderr, flush=True)
        return 1


def finished(options: Options) -> bool:
    """True if the run has its summary and all its steps.

    Raises: UsageError if the number of steps is not known; CheckpointError or OSError for checkpoints that cannot be listed.
    """
    try:
        summary = walltime.summary(Path(str(options.run_dir)))
        had, steps = summary["options"], int(summary["steps"])
    except walltime.UNREADABLE as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        return False
    if all(had.get(name) == getattr(options, name) for name in BOUNDS):
        return True
    if "stopped_early" in summary and all(had.get(name) == getattr(options, name) for name in ("validation", "patience")):
        return True
    total = checks.total_steps(options, checks.data(options) if options.epochs else None)
    if total is None:
        raise UsageError(f"{options.data} is too large to count the steps of --epochs {options.epochs}")
    names = resume.place(options).names()
    return max(steps, naming.step_of(names[-1]) if names else 0) >= total


if __name__ == "__main__":
    sys.exit(main())
