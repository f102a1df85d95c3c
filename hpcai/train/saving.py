"""Checkpoints beside the steps: arrays are copied, a thread of each rank writes its share, and training goes on.

When all ranks have written, which the votes of a step tell all of them, they exchange what the manifest says of their shards, and
rank 0's thread commits it. At most one checkpoint is under way. The threads make no collectives, and know nothing of replica and
communicator, so that those are free once ranks have failed.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from hpcai.checkpoint import naming
from hpcai.checkpoint.format import Laid
from hpcai.checkpoint.retention import Next, Retention, attempt
from hpcai.checkpoint.shards import ShardBuffer
from hpcai.checkpoint.storage import Store
from hpcai.checkpoint.worker import Task, Worker
from hpcai.comm.communicator import Communicator
from hpcai.errors import CheckpointError
from hpcai.train import votes
from hpcai.train.replica import Replica
from hpcai.train.state import arrays
from hpcai.xp import Array

LONGEST_PAUSE_S = 0.05
"""Between two questions whether all ranks' threads are done."""

SAID_AFTER_S = 60.0
"""What takes longer is named."""

NOT_ON_DISK = "checkpoints are still not on disk"


class Saver:
    """Writes a run's checkpoints into a place. Every rank calls it alike."""

    def __init__(self, replica: Replica, comm: Communicator, place: Store, keep: int):
        self.replica, self.comm, self.retention = replica, comm, Retention(place, keep)
        self._layouts: list[Laid] = []
        self._before: list[Task] | None = None
        self._image, self._thread = ShardBuffer(), Worker()
        self._step, self._meta = 0, dict[str, Any]()
        self._writing: Task | None = None
        self._committing: Task | None = None
        self._tidying: Task | None = None
        self._failure = ""

    @property
    def place(self) -> Store:
        """The place of the checkpoints."""
        return self.retention.place

    @property
    def under_way(self) -> bool:
        """Return whether a checkpoint is not durable yet, as far as this rank knows."""
        return self._writing is not None or self._committing is not None

    def save(self, step: int, meta: dict[str, Any]) -> None:
        """Take a copy of what this rank keeps and start to write it; the arrays may change on return. Collective: one that is
        still under way is waited for. meta: JSON, the same on all ranks.

        After a recovery a step whose checkpoint is complete already is not written again: it holds the same.
        """
        self.finish()
        if not self._layouts and self._begin(naming.name_of(step)):
            return
        self._step, self._meta = step, meta | {"mesh": self.replica.mesh.sizes._asdict(), "ranks": self.comm.size}
        self._image.fill(arrays.runs(self.replica))
        counters = arrays.counters(self.replica) if self.replica.mesh.dp.rank == 0 else None
        entry = {"rank": self.comm.rank, "layout": arrays.number(self.replica), "counters": counters}
        self.replica.votes[votes.OF_CHECKPOINTS] = 0
        write = functools.partial(_write, self.place, naming.name_of(step), self._image, entry, self.comm.size)
        self._writing = self._thread.begin(Task(write, functools.partial(_cast, self.replica.votes, votes.WRITTEN)))

    def heard(self, counted: Array) -> None:
        """After a step, with its votes: where all ranks have ended their writing the checkpoint is committed. When that is done
        the votes say so too; a failure waits for `finish`.
        """
        if self._writing is not None and counted[votes.WRITTEN] + counted[votes.FAILED] == self.comm.size:
            self._commit()
        elif self._committing is not None and counted[votes.COMMITTED]:
            self._committing, self._failure = None, ""

    def finish(self) -> str:
        """Wait until what is under way is durable; returns why it is not, on all ranks. Collective."""
        if self._writing is not None:
            _all_done(self.comm, [self._writing])
            self._commit()
        if self._committing is not None:
            _all_done(self.comm, [self._committing])
            self._failure = self.comm.on_root(self._committing.wait)
            self._committing = None
        return self._failure

    def close(self) -> None:
        """Wait as `finish` does, and tidy up. Raises: CheckpointError, on all ranks, if the last one could not be written."""
        failure = self.finish()
        if self._layouts:
            on_root_beside(self.comm, lambda: attempt(self.place.discard))
        if failure:
            raise CheckpointError(self._failure)

    def moved(self, replica: Replica, comm: Communicator) -> Saver:
        """Return a saver that goes on among other ranks, after some have failed. A checkpoint under way is awaited only by the
        next save, which may take it away. Not collective.
        """
        fresh = Saver(replica, comm, self.place, self.retention.keep)
        fresh.retention = self.retention
        works = (*(self._before or []), self._writing, self._committing, self._tidying)
        fresh._before = [work for work in works if work is not None]
        return fresh

    def _begin(self, name: str) -> bool:
        """Before the first checkpoint: what the manifest says of layouts; and nothing may be left of ranks that failed. Returns
        whether that checkpoint is there already, on all ranks.
        """
        number, first = arrays.number(self.replica), self.replica.mesh.dp.rank == 0
        _all_done(self.comm, self._before or [])  # their threads may still be writing
        told = [
            one for one in self.comm.allgather_object((number, arrays.laid(self.replica)) if first else None) if one is not None
        ]
        self._layouts = [laid for _, laid in sorted(told, key=lambda one: one[0])]
        recovered, self._before = self._before is not None, None
        place, retention = self.place, self.retention

        def tidied() -> bool:
            attempt(place.discard)
            attempt(retention.look)
            return recovered and retention.has(name)

        work = self._tidying = self._thread.begin(Task(tidied)) if self.comm.rank == 0 else Task.none()
        _all_done(self.comm, [work])
        self._tidying = None
        return bool(self.comm.on_root(lambda: work.result))

    def _commit(self) -> None:
        """All ranks' threads have written: exchange what, and have rank 0's thread make it a checkpoint, or take it away.
        Collective.
        """
        assert self._writing is not None
        reason = self._writing.wait()
        told = self.comm.allgather_object((self._writing.result, reason))
        self._writing = None
        self.replica.votes[votes.OF_CHECKPOINTS] = 0
        failed = [(rank, why) for rank, (_, why) in enumerate(told) if why]
        entries = [entry for entry, _ in told if entry is not None]
        what = Next(self._step, self._meta, self._layouts)
        conclude = functools.partial(self.retention.conclude, what, entries, failed)
        commit = Task(conclude, functools.partial(_cast, self.replica.votes, votes.COMMITTED))
        self._committing = self._thread.begin(commit) if self.comm.rank == 0 else Task.none()


def on_root_beside(comm: Communicator, work: Callable[[], Any], late: str = NOT_ON_DISK) -> Any:
    """`comm.on_root` for what may take longer than ranks wait for each other; then `late` is said. Raises: CheckpointError."""
    beside = Worker().begin(Task(work)) if comm.rank == 0 else Task.none()
    _all_done(comm, [beside], late)
    result, failure = comm.allgather_object((beside.result, beside.wait()))[0]
    if failure:
        raise CheckpointError(failure)
    return result


def _all_done(comm: Communicator, works: Iterable[Task], late: str = NOT_ON_DISK) -> None:
    """Wait for all ranks' threads. However long a disk takes, no rank waits for another longer than for a moment. Collective."""
    pause, began, said, done = 0.0005, time.monotonic(), False, np.zeros(1, np.int32)
    while True:
        done[0] = all(work.done for work in works)
        if comm.allreduce(done, "min")[0]:
            return
        if comm.rank == 0 and not said and time.monotonic() - began > SAID_AFTER_S:
            said = True
            print(f"hpcai: warning: {late}, {SAID_AFTER_S:.0f} s later", file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _write(place: Store, name: str, image: ShardBuffer, entry: dict[str, Any], ranks: int) -> dict[str, Any]:
    """This rank's shard, in its thread: what the manifest says of it."""
    file, about = naming.shard(entry["rank"], ranks), image.describe()
    if about["runs"]:
        place.write(name, file, image.content)
    return {"file": file, **entry, **about}


def _cast(into: Array, good: int, work: Task) -> None:
    into[votes.FAILED if work.failure else good] = 1
