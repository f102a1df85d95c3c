"""All ranks are killed while they write checkpoints, over and over: python -m tests.train.torture FOLDER KILLS SEED.

A child's ranks are threads that save as fast as they can; after each checkpoint of which they know that it is complete, rank 0
says its step. After a random time the child is killed, so that no rank does anything any more. Then every checkpoint must be
whole and hold what belongs to its step, and none that was announced may be missing. The next child goes on from the newest.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from hpcai.checkpoint import format, naming, storage
from hpcai.comm import threads
from hpcai.data.dataset import Dataset
from hpcai.train import resume
from hpcai.train.history import Progress
from hpcai.train.options import parser
from hpcai.train.replica import new_replica
from hpcai.train.saving import Saver
from hpcai.train.state import arrays
from tests.command import end_with_this_process

LONGEST_S = 0.15
SPLITS = (["--zero", "0"], ["--zero", "2"], ["--compress", "int4"])


def dataset():
    none = np.zeros(0, np.int64)
    empty = np.zeros((0, 64), np.float32)
    return Dataset("random", empty, none, empty, none, shape=(64,), classes=10)


def value(step, array):
    """What the elements of an array are after so many steps."""
    return step * 1000 + len(array)


def chosen():
    """Options of each kind of run, parsed before the children are made, and everything loaded that they use."""
    flags = ["--hidden", "96", "--optimizer", "adam", "--compress-smallest", "1"]
    options = [parser.parse([*flags, *split]) for split in SPLITS]
    for one in options:
        threads.run(2, lambda comm, one=one: new_replica(one, dataset(), comm))
    return options


def child(folder, options, seed, said):
    """Save until the end comes."""
    ranks = random.Random(seed).choice([1, 2, 3])
    arrays.SMALLEST_SHARD_BYTES = 1

    def program(comm):
        mine = new_replica(options, dataset(), comm)
        place = storage.place(folder)
        comm.on_root(place.discard)
        step = comm.on_root(lambda: int((["step-0", *place.names()])[-1].split("-")[1]))
        saver = Saver(mine, comm, place, keep=2)
        while True:
            step += 1
            for one in mine.kept():
                if one.held in ("all", "shard"):
                    one.array[...] = value(step, one.name)
            resume.save(options, mine, Progress(step), saver)
            if step % 2:  # as steps do; else as at the end
                while saver._writing is not None:
                    counted = mine.votes.copy()
                    saver.heard(comm.allreduce(counted))
            assert not saver.finish()
            if comm.rank == 0:
                os.write(said, f"{step}\n".encode())

    threads.run(ranks, program)


def check(folder, announced):
    """Raise AssertionError unless every checkpoint is whole and none that was announced is missing; returns the newest's step."""
    paths = format.all_in(Path(folder))
    steps = []
    for path in paths:
        step, found = format.read(path)
        assert path.name == naming.name_of(step)
        for name, array in found.arrays.items():
            if not name.startswith(("memories", "owed", "reducer.")):
                assert (array == value(step, name)).all(), f"{path} has {array} as {name}"
        steps.append(step)
    newest = max(steps, default=0)
    assert newest >= announced, f"step {announced} was announced, the newest is {newest}"
    return newest


def main(folder, kills, seed):
    rng, options = random.Random(seed), chosen()
    announced = commits = writing = 0
    for i in range(kills):
        said, to_say = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                end_with_this_process(signal.SIGKILL)
                child(folder, rng.choice(options), rng.random(), to_say)
            finally:
                os._exit(1)
        os.close(to_say)
        time.sleep(rng.uniform(0, LONGEST_S))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself"
        with os.fdopen(said) as file:
            lines = file.read().split()
        commits += len(lines)
        writing += bool(list(Path(folder).glob(".*-step-*")))
        announced = max([announced, *map(int, lines)])
        announced = check(folder, announced)
        if (i + 1) % 100 == 0:
            print(f"{i + 1} kills", file=sys.stderr, flush=True)
    print(f"{kills} kills, {writing} of them while a checkpoint was half-written; {commits} checkpoints, none lost or broken")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
