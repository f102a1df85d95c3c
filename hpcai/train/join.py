"""`python -m hpcai.train.join`: a rank that others start in place of one that failed (--elastic grow). Not for people."""

from __future__ import annotations

import sys

from hpcai.comm import job
from hpcai.comm.diagnosis import stall
from hpcai.comm.membership import Membership
from hpcai.errors import RankFailed, RanksLost
from hpcai.train.elastic import newcomers
from hpcai.train.ending import ending
from hpcai.train.loop import go_on


def main() -> int:
    """Take a part of the run that is under way, and end as all do."""
    stall.outlive()
    wire = job.merged()
    invited, comm = None, None
    with job.limited("joining the others", RanksLost.exit_code, job.JOINING_S):
        try:
            comm = job.join(wire)
            invited = newcomers.join(comm)
        except RankFailed:
            wire.revoke()
        if not wire.all_agree(invited is not None) or comm is None or invited is None:
            return job.quit()  # the others go on without
    reserve = Membership(wire, invited[0].wanted, invited[0].options.spare_ranks)
    return ending(lambda: go_on(reserve, comm, *invited, came_later=True))


if __name__ == "__main__":
    sys.exit(main())
