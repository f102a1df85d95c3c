"""The process that passes lines between MPICH and Slurm; hpcai.comm.launch.pmi starts it, and says why.

It is run by path, so that it starts in milliseconds, and imports nothing of hpcai.
"""

import os
import select
import sys

LONGEST, SHORTER = b" vallen_max=1024", b" vallen_max=900"
"""Slurm's limit for values, and one with which `cmd=put kvsname=... key=... value=...` fits into 1,024 characters."""


def hand_on(rank: int, slurm: int) -> None:
    """Pass lines between the sockets of these descriptors until one is closed, each in one piece."""
    other = {rank: slurm, slurm: rank}
    while True:
        for fd in select.select([rank, slurm], [], [])[0]:
            said = os.read(fd, 1 << 16)
            if not said:
                return
            said = said.replace(LONGEST, SHORTER) if fd == slurm else said
            while said:
                said = said[os.write(other[fd], said) :]


if __name__ == "__main__":
    hand_on(int(sys.argv[1]), int(sys.argv[2]))
