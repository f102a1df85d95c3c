"""`python -m hpcai.train.join`: a rank that others start in place of one that failed (--elastic grow). Not for people."""

from __future__ import annotations

import sys

from hpcai.comm import job, stall
from hpcai.errors import RankFailed
from hpcai.train import elastic
from hpcai.train.__main__ import ending
from hpcai.train.loop import go_on


def main() -> int:
    """Take a part of the run that is under way, and end as all do."""
    wire = job.merged()
    invited, comm = None, None
    with job.limited("joining the others", limit_s=job.JOINING_S):
        try:
            comm = job.join(wire)
            invited = elastic.join(comm)
        except RankFailed:
            wire.revoke()
        if not wire.all_fine(invited is not None) or comm is None or invited is None:
            return job.quit()  # the others go on without
    stall.watch_over(comm)  # as the others do, at the end of `recover`
    return ending(lambda: go_on(comm, *invited))


if __name__ == "__main__":
    sys.exit(main())
