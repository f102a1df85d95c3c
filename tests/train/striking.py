"""`python striking.py RANK PHASE STEP [RANK PHASE STEP]... -- OPTIONS`: hpcai.train whose rank RANK dies in step STEP, at a chosen
place. With RANK 2! it does not die: it believes that another did, as a rank does that another's death met in its last wait. With 2-
it is stopped for good.
"""

import os
import signal
import sys

from hpcai.comm.mpi import MpiWire
from hpcai.errors import RankFailed
from hpcai.train import elastic, loop, step
from hpcai.train.__main__ import main

RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])
begun = {"at": 0}


def strike(rank, phase, at, how):
    place = PLACES[phase]
    original = getattr(*place)

    def struck(*args, **kwargs):
        done = original(*args, **kwargs) if phase in AFTERWARDS else None
        if rank == RANK and (begun["at"] == at or phase == "leaving") and not begun.get((rank, phase)):
            begun[rank, phase] = True
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
    "evaluating": (loop, "evaluate"),
    "saving": (loop.resume, "save"),
    "recovering": (elastic, "_carry_over"),
    "leaving": (loop.resume, "save"),
    "shrunk": (MpiWire, "shrink"),
    "welcomed": (elastic, "_welcomed"),
}
AFTERWARDS = ("shrunk", "welcomed")

if __name__ == "__main__":
    cut = sys.argv.index("--")
    strikes = sys.argv[1:cut]
    remember = elastic.remember

    def note(mine, at):
        begun["at"] = at
        remember(mine, at)

    elastic.remember = note
    for rank, phase, at in zip(*[iter(strikes)] * 3, strict=True):
        strike(int(rank[0]), phase, int(at), rank[1:])
    sys.exit(main(sys.argv[cut + 1 :]))
