"""Checkpoints beside the steps: arrays are copied, a thread of each rank writes its share, and training goes on.

When all ranks have written, which the votes of a step tell all of them, they exchange what the manifest says of their shards, and
rank 0's thread commits it. At most one checkpoint is under way. The threads make no collectives.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from hpcai.comm.communicator import Communicator
from hpcai.errors import CheckpointError
from hpcai.train import assembly, checkpoint, memories, storage, votes
from hpcai.train.checkpoint import Laid
from hpcai.train.replica import Replica
from hpcai.train.shards import Image
from hpcai.train.storage import Place
from hpcai.xp import Array


class Saver:
    """Writes a run's checkpoints into a place. Every rank calls it alike."""

    def __init__(self, mine: Replica, comm: Communicator, place: Place, keep: int):
        self.mine, self.comm, self.place, self.keep = mine, comm, place, keep
        self.last = "no checkpoint was written yet"
        self._layouts: list[Laid] = []
        self._before: Saver | None = None
        self._image = Image()
        self._step, self._meta = 0, dict[str, Any]()
        self._writing: _Work | None = None
        self._committing: _Work | None = None
        self._failure = ""

    @property
    def under_way(self) -> bool:
        """Whether a checkpoint is not durable yet, as far as this rank knows."""
        return self._writing is not None or self._committing is not None

    @property
    def name(self) -> str:
        """Of the checkpoint under way, or the last one."""
        return storage.named(self._step)

    def save(self, step: int, meta: dict[str, Any]) -> None:
        """Take a copy of what this rank keeps and start to write it; the arrays may change on return. Collective: one that is
        still under way is waited for. meta: JSON, the same on all ranks.
        """
        self.finish()
        if not self._layouts:
            self._begin()
        self._step, self._meta = step, meta | {"mesh": self.mine.mesh.sizes._asdict(), "ranks": self.comm.size}
        self._image.fill(assembly.runs(self.mine) + memories.runs(self.mine))
        counters = memories.counters(self.mine)
        cast = self.mine.votes
        cast[[votes.WRITTEN, votes.FAILED]] = 0
        self._writing = _Work(lambda: self._write(counters), lambda work: _cast(cast, work))

    def heard(self, counted: Array) -> None:
        """After a step, with its votes: where all ranks have ended their writing the checkpoint is committed."""
        if self._writing is not None and counted[votes.WRITTEN] + counted[votes.FAILED] == self.comm.size:
            self._commit()

    def finish(self) -> str:
        """Wait until what is under way is durable; returns why it is not, on all ranks. Collective."""
        if self._writing is not None:
            self._commit()
        if self._committing is not None:
            self._failure = self.comm.on_root(self._committing.wait)
            self._committing = None
        return self._failure

    def close(self) -> None:
        """Wait as `finish` does. Raises: CheckpointError, on all ranks, if the last checkpoint could not be written."""
        if self.finish():
            raise CheckpointError(self._failure)

    def moved(self, mine: Replica, comm: Communicator) -> Saver:
        """One that goes on among other ranks, after some have failed. What is under way is not waited for before the next save,
        which may take it away. Not collective.
        """
        fresh = Saver(mine, comm, self.place, self.keep)
        fresh.last, fresh._before = self.last, self
        return fresh

    def _begin(self) -> None:
        """Before the first checkpoint: what the manifest says of layouts; and nothing may be left of ranks that failed."""
        number, first = assembly.number(self.mine), self.mine.mesh.dp.rank == 0
        while self._before is not None:  # their threads may still be writing
            for work in (self._before._writing, self._before._committing):
                if work is not None:
                    work.wait()
            self._before = self._before._before
        told = [one for one in self.comm.exchange((number, assembly.laid(self.mine)) if first else None) if one is not None]
        self._layouts = [laid for _, laid in sorted(told, key=lambda one: one[0])]
        self.comm.on_root(lambda: self._attempt(self.place.discard))

    def _write(self, counters: Any) -> dict[str, Any]:
        """This rank's shard, in its thread: what the manifest says of it."""
        rank, about = self.comm.rank, self._image.describe()
        file = f"shard-{rank:05d}-of-{self.comm.size:05d}.safetensors"
        if about["runs"]:
            self.place.write(self.name, file, self._image.content)
        entry = {"file": file, "rank": rank, "layout": assembly.number(self.mine), **about}
        return entry | {"counters": counters if self.mine.mesh.dp.rank == 0 else None}

    def _commit(self) -> None:
        """Exchange what was written, and have rank 0's thread make it a checkpoint, or take it away. Collective."""
        assert self._writing is not None
        reason = self._writing.wait()
        told = self.comm.exchange((self._writing.result, reason))
        self._writing = None
        self.mine.votes[[votes.WRITTEN, votes.FAILED]] = 0
        failed = [(rank, why) for rank, (_, why) in enumerate(told) if why]
        entries = [entry for entry, _ in told if entry is not None]
        on_root = self.comm.rank == 0
        self._committing = _Work(lambda: self._conclude(entries, failed)) if on_root else _Work.none()

    def _conclude(self, entries: list[dict[str, Any]], failed: list[tuple[int, str]]) -> None:
        """In rank 0's thread: the manifest, if all shards are there."""
        try:
            if failed:
                others = f" (and {len(failed) - 1} more ranks)" if len(failed) > 1 else ""
                raise CheckpointError(f"rank {failed[0][0]}: {failed[0][1]}{others}")
            self._check_sizes(entries)
            counters = {entry["layout"]: entry["counters"] for entry in entries if entry["counters"] is not None}
            shards = [{k: v for k, v in entry.items() if k != "counters"} for entry in entries if entry["runs"]]
            meta = self._meta | {"counters": [counters[i] for i in range(len(self._layouts))]}
            self.place.commit(self.name, checkpoint.manifest(self._step, meta, self._layouts, shards))
        except BaseException as error:
            self._attempt(lambda: self.place.discard(self.name))
            path, why = self.place.path(self.name), " ".join(str(error).split())
            said = f"checkpoint {path} could not be written: {why}"
            print(f"hpcai: warning: {said}; the run goes on; {self.last}", file=sys.stderr, flush=True)
            raise CheckpointError(said) from None
        self.last = f"the last good checkpoint is {self.place.path(self.name)}"
        self._attempt(self._prune)

    def _check_sizes(self, entries: list[dict[str, Any]]) -> None:
        found = self.place.sizes(self.name)
        for entry in entries:
            file, size = entry["file"], entry["bytes"]
            if entry["runs"] and found.get(file) != size:
                raise CheckpointError(
                    f"rank 0 does not find the shard that rank {entry['rank']} wrote ({file}, {size:,} bytes); the folder must "
                    "be on a file system that all nodes share, see --checkpoints"
                )

    def _prune(self) -> None:
        """Drop all but the newest `keep`, never the one that was just written."""
        others = [name for name in self.place.names() if name != self.name]
        for name in others[: max(0, len(others) - (self.keep - 1))]:
            self.place.remove(name)

    def _attempt(self, work: Callable[[], None]) -> None:
        """What may fail without harm: another checkpoint's turn will try again."""
        try:
            work()
        except OSError as error:
            print(f"hpcai: warning: {error}", file=sys.stderr, flush=True)


class _Work:
    """A function that a thread of its own carries out, which ends with the process."""

    def __init__(self, function: Callable[[], Any], then: Callable[[_Work], None] = lambda work: None):
        self.result: Any = None
        self.failure = ""
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, args=(function, then), daemon=True, name="hpcai checkpoint"
        )
        self._thread.start()

    @classmethod
    def none(cls) -> _Work:
        """Nothing to do."""
        made = cls.__new__(cls)
        made.result, made.failure, made._thread = None, "", None
        return made

    def wait(self) -> str:
        """Return when it is done: why it failed, or nothing."""
        if self._thread is not None:
            self._thread.join()
        return self.failure

    def _run(self, function: Callable[[], Any], then: Callable[[_Work], None]) -> None:
        try:
            self.result = function()
        except BaseException as error:  # told to all ranks in the next exchange
            self.failure = " ".join(str(error).split()) or type(error).__name__
        then(self)


def _cast(into: Array, work: _Work) -> None:
    into[votes.FAILED if work.failure else votes.WRITTEN] = 1
