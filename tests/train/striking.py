"""`python striking.py RANK PHASE STEP [RANK PHASE STEP]... -- OPTIONS`: hpcai.train whose rank RANK dies in step STEP, at a chosen
place. With RANK 2! it does not die: it believes that another did, as a rank does that another's death met in its last wait. With 2-
it is stopped for good, with 2+ for SLOW_S seconds it does nothing, with 2* so each time that it comes there. BLIND=1: nobody sees
who is stopped, as of ranks on other nodes.
"""

import os
import signal
import sys
import time

from hpcai.comm.diagnosis import watch
from hpcai.comm.membership import Membership
from hpcai.comm.wires.mpi import MpiWire
from hpcai.errors import RankFailed
from hpcai.train import between, loop, step
from hpcai.train.__main__ import main
from hpcai.train.elastic import newcomers
from hpcai.train.state import transfer
from hpcai.train.state.undo import Undo

OTHERS_SHRINK_S = 0.1
"""Where a rank ends while others are still in MPI_Comm_shrink, Open MPI 5.0.11 may crash on those (in ompi_comm_revoke_local)."""

SLOW_S = 10.0

RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])
begun = {"at": 0}


def strike(rank, phase, at, how):
    place = PLACES[phase]
    original = getattr(*place)

    def struck(*args, **kwargs):
        done = original(*args, **kwargs) if phase in AFTERWARDS else None
        first = not begun.get((rank, phase))
        if rank == RANK and (begun["at"] == at or phase == "leaving") and (first or how == "*"):
            begun[rank, phase] = True
            if first:
                with open(os.environ["STRIKES"], "a") as file:
                    file.write(f"{rank}{how} {phase} {at}\n")
            if how and how in "+*":
                time.sleep(SLOW_S)
                return done if phase in AFTERWARDS else original(*args, **kwargs)
            if phase == "shrunk":
                time.sleep(OTHERS_SHRINK_S)
            if how != "!":
                os.kill(os.getpid(), signal.SIGSTOP if how == "-" else signal.SIGKILL)
            original(*args, **kwargs)
            raise RankFailed("as if")
        return done if phase in AFTERWARDS else original(*args, **kwargs)

    setattr(*place, struck)


PLACES = {
    "backward": (step, "cut"),
    "reducing": (step, "_reduce"),
    "deciding": (step, "_decide"),
    "decided": (step, "update"),
    "updated": (step, "_share"),
    "evaluating": (between, "evaluate"),
    "saving": (loop.resume, "save"),
    "recovering": (transfer, "carry_over"),
    "leaving": (loop.resume, "save"),
    "shrunk": (MpiWire, "shrink"),
    "starting": (newcomers, "spawn_ranks"),
    "welcomed": (newcomers, "_welcomed"),
    "joining": (newcomers, "join"),
    "counted": (Membership, "_first"),
    "splitting": (MpiWire, "_split_as_told"),
    "waiting": (Membership, "run_ended"),
}
AFTERWARDS = ("shrunk", "welcomed")

if __name__ == "__main__":
    cut = sys.argv.index("--")
    strikes = sys.argv[1:cut]
    remember = Undo.remember

    def note(undo, at, kept):
        begun["at"] = at
        remember(undo, at, kept)

    Undo.remember = note
    if os.environ.get("BLIND"):
        watch.frozen = list
    for rank, phase, at in zip(*[iter(strikes)] * 3, strict=True):
        strike(int(rank[0]), phase, int(at), rank[1:])
    sys.exit(main(sys.argv[cut + 1 :]))
