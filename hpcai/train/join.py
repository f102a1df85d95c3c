"""`python -m hpcai.train.join`: a rank that replaces a failed one (--elastic grow). Other ranks start this command, not users."""

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
    """Join the run under way, and return the exit code that all ranks return."""
    for number in (signal.SIGUSR1, signal.SIGTERM):  # the other ranks handle signals for all; this rank is not ready yet
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
            return limits.quit()  # the other ranks continue without this one
    comm, (told, dataset, replica) = made[0]
    reserve = Membership(wire, told.wanted, told.options.spare_ranks, given_up=given_up)
    return ending(lambda: go_on(reserve, comm, told, dataset, replica, came_later=True))


if __name__ == "__main__":
    sys.exit(main())
