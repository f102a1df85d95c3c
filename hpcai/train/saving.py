"""Checkpoints written during training: each rank copies its arrays, a thread writes its shard, and training continues.

The votes of a step tell all ranks when all have written. Then they exchange the manifest's entries of their shards, and rank 0's
thread commits the checkpoint. At most one checkpoint is under way. The threads make no collective calls and hold neither replica
nor communicator, so that both are freed after a failure.
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
"""The longest pause between two checks of whether all ranks' threads are done."""

SAID_AFTER_S = 60.0
"""A warning is printed if threads take longer than this."""

NOT_ON_DISK = "checkpoints are still not on disk"


class Saver:
    """Writes a run's checkpoints into a place. Every rank makes the same calls."""

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
        """Whether a checkpoint is not durable yet, as far as this rank knows."""
        return self._writing is not None or self._committing is not None

    def save(self, step: int, meta: dict[str, Any]) -> None:
        """Copy this rank's state and start to write it; the arrays may change after the return. Collective. Waits for a
        checkpoint that is still under way. meta: JSON, the same on all ranks.

        After a recovery, a checkpoint of this step that is already complete is not written again: its contents are the same.
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
        """Process a step's votes. If all ranks have finished writing, the checkpoint is committed. Later votes tell that the
        commit is done; a failed commit is reported by `finish`. Collective.
        """
        if self._writing is not None and counted[votes.WRITTEN] + counted[votes.FAILED] == self.comm.size:
            self._commit()
        elif self._committing is not None and counted[votes.COMMITTED]:
            self._committing, self._failure = None, ""

    def finish(self) -> str:
        """Wait until a checkpoint under way is durable. Return the reason on all ranks if that failed, else "". Collective."""
        if self._writing is not None:
            _all_done(self.comm, [self._writing])
            self._commit()
        if self._committing is not None:
            _all_done(self.comm, [self._committing])
            self._failure = self.comm.on_root(self._committing.wait)
            self._committing = None
        return self._failure

    def close(self) -> None:
        """Wait as in `finish`, and remove incomplete files. Collective.

        Raises: CheckpointError, on all ranks, if the last checkpoint could not be written.
        """
        failure = self.finish()
        if self._layouts:
            on_root_beside(self.comm, lambda: attempt(self.place.discard))
        if failure:
            raise CheckpointError(self._failure)

    def moved(self, replica: Replica, comm: Communicator) -> Saver:
        """Return a saver for a new group of ranks, after some have failed. Only the next save waits for a checkpoint under way,
        and may remove it. Not collective.
        """
        fresh = Saver(replica, comm, self.place, self.retention.keep)
        fresh.retention = self.retention
        works = (*(self._before or []), self._writing, self._committing, self._tidying)
        fresh._before = [work for work in works if work is not None]
        return fresh

    def _begin(self, name: str) -> bool:
        """Prepare the first checkpoint: gather the manifest's layouts, and remove incomplete files, also of failed ranks. Return,
        on all ranks, whether this checkpoint already exists after a recovery. Collective.
        """
        number, first = arrays.number(self.replica), self.replica.mesh.dp.rank == 0
        _all_done(self.comm, self._before or [])  # threads of the former saver may still be writing
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
        """Exchange the entries of all shards after the threads have written. Rank 0's thread then commits the checkpoint, or
        removes it after a failure. Collective.
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
    """Do as `comm.on_root`, for work that may take longer than ranks wait for each other; `late` is the warning after a while.
    Collective. Raises: CheckpointError if the work fails.
    """
    beside = Worker().begin(Task(work)) if comm.rank == 0 else Task.none()
    _all_done(comm, [beside], late)
    result, failure = comm.allgather_object((beside.result, beside.wait()))[0]
    if failure:
        raise CheckpointError(failure)
    return result


def _all_done(comm: Communicator, works: Iterable[Task], late: str = NOT_ON_DISK) -> None:
    """Wait for all ranks' threads. Ranks poll in short calls, so that none waits long, even for a slow disk. Collective."""
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
    """Write this rank's shard; return the shard's entry for the manifest. Runs in the rank's thread."""
    file, about = naming.shard(entry["rank"], ranks), image.describe()
    if about["runs"]:
        place.write(name, file, image.content)
    return {"file": file, **entry, **about}


def _cast(into: Array, good: int, work: Task) -> None:
    into[votes.FAILED if work.failure else good] = 1
