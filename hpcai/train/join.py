"""`python -m hpcai.train.join`: a rank that others start in place of one that failed (--elastic grow). Not for people."""

from __future__ import annotations

import signal
import sys

from hpcai.comm import job, limits
from hpcai.comm.communicator import Communicator
from hpcai.comm.diagnosis import stall
from hpcai.comm.membership import Membership, voted
from hpcai.data.dataset import Dataset
from hpcai.errors import RankFailed, RanksLost
from hpcai.train.elastic import newcomers
from hpcai.train.ending import ending
from hpcai.train.loop import go_on
from hpcai.train.replica import Replica


def main() -> int:
    """Take a part of the run that is under way, and end as all do."""
    for number in (signal.SIGUSR1, signal.SIGTERM):  # the others hear them for all, and this one is not ready to
        signal.signal(number, signal.SIG_IGN)
    stall.outlive()
    wire = job.merged()
    given_up = list[RankFailed]()

    def joined() -> tuple[Communicator, tuple[newcomers.Invitation, Dataset, Replica]]:
        comm = job.join(wire)
        return comm, newcomers.join(comm)

    with limits.limited("joining the others", RanksLost.exit_code, job.JOINING_S):
        made = voted(wire, joined, given_up)
        if made is None:
            return limits.quit()  # the others go on without
    comm, (told, dataset, replica) = made[0]
    reserve = Membership(wire, told.wanted, told.options.spare_ranks, given_up=given_up)
    return ending(lambda: go_on(reserve, comm, told, dataset, replica, came_later=True))


if __name__ == "__main__":
    sys.exit(main())
