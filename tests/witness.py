"""`python -m tests.witness hpcai.train OPTIONS`, or hpcai.train.join: that module, but at the end each rank writes into the run's folder
which parameters it has. See torture.py.
"""

import hashlib
import os
import sys

from hpcai.comm.wires.mpi import MpiWire
from hpcai.train import join, loop
from hpcai.train.__main__ import main

ENDED = "ended-"


def testify(run):
    """After how many steps this rank has which parameters. It must be the same on all ranks, to the bit."""
    digest = hashlib.sha256(run.replica.params.tobytes()).hexdigest()
    (run.folder / f"{ENDED}{os.getpid()}-{run.comm.rank}").write_text(f"step {run.progress.step}: {digest[:16]}")


def difference(folder, ranks, steps):
    """What is wrong with what so many ranks wrote after so many steps; ranks that ended a moment before may have, too."""
    said = [path.read_text() for path in sorted(folder.glob(f"{ENDED}*"))]
    fine = len(said) >= ranks and len(set(said)) == 1 and said[0].startswith(f"step {steps}:")
    return "" if fine else f"{ranks} ranks after {steps} steps ended with the parameters {said}"


def watch():
    """Have this process's ranks testify, and those that it starts."""
    finish, grow = loop._finish, MpiWire.grow

    def finished(run):
        testify(run)
        return finish(run)

    def grown(wire, count, command):
        return grow(wire, count, [command[0], "-m", "tests.witness", *command[2:]])

    loop._finish, MpiWire.grow = finished, grown


if __name__ == "__main__":
    watch()
    sys.exit(join.main() if sys.argv[1] == "hpcai.train.join" else main(sys.argv[2:]))
