"""`python -m hpcai.train.join`: a rank that others start in place of one that failed (--elastic grow). Not for people."""

from __future__ import annotations

import sys

from hpcai.comm import job
from hpcai.train import elastic
from hpcai.train.__main__ import ending
from hpcai.train.loop import go_on


def main() -> int:
    """Take a part of the run that is under way, and end as all do."""
    comm = job.join()
    return ending(lambda: go_on(comm, *elastic.join(comm)))


if __name__ == "__main__":
    sys.exit(main())
