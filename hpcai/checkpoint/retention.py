"""The series of a run's checkpoints in one place: how the next checkpoint is completed, and which older ones are removed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from hpcai.checkpoint import format, naming
from hpcai.checkpoint.format import Broken, Laid
from hpcai.checkpoint.storage import Store
from hpcai.errors import CheckpointError, counted

T = TypeVar("T")


class Next(NamedTuple):
    """What the manifest of the checkpoint under way contains besides its shards."""

    step: int
    meta: dict[str, Any]
    layouts: list[Laid]


class Retention:
    """Completes and removes checkpoints on rank 0, mostly in a thread. It has no communicator, so it outlives lost ranks.

    keep: how many checkpoints stay, beside the best; last: a message that names the last good checkpoint.
    """

    def __init__(self, place: Store, keep: int):
        self.place, self.keep = place, keep
        self.last = "no checkpoint was written yet"
        self._whole: set[str] = set()
        self._best = ""

    @property
    def best(self) -> str:
        """The path or URL of the checkpoint that is kept as the best; empty if there is none."""
        return self._best and self.place.path(self._best)

    def look(self) -> None:
        """Find the last good checkpoint from before this process, and the best one that its manifest names."""
        found = [name for name in self.place.names() if self.has(name)]
        if found:
            self._good(found[-1])
            self._best = self._best or self._best_by(found[-1])

    def conclude(self, what: Next, entries: list[dict[str, Any]], failed: list[tuple[int, str]]) -> None:
        """Write the manifest if all shards are there, and remove superseded checkpoints.

        entries: of the shards, for the manifest; failed: (rank, reason) for each rank that could not write.
        Raises: CheckpointError, after a warning.
        """
        name = naming.name_of(what.step)
        try:
            if failed:
                others = f" (and {counted(len(failed) - 1, 'more rank')})" if len(failed) > 1 else ""
                raise CheckpointError(f"rank {failed[0][0]}: {failed[0][1]}{others}")
            self._check_sizes(name, entries)
            counters = {entry["layout"]: entry["counters"] for entry in entries if entry["counters"] is not None}
            shards = [{k: v for k, v in entry.items() if k != "counters"} for entry in entries if entry["runs"]]
            best = attempt(lambda: self._best_beside(name, what.meta)) or ""
            kept = {"best_kept": naming.step_of(best) if best else None} if what.meta.get("keeps_best") else {}
            meta = what.meta | {"counters": [counters[i] for i in range(len(what.layouts))]} | kept
            manifest = format.manifest(what.step, meta, what.layouts, shards)
            superseded = attempt(lambda: self._superseded({name, best})) or []
            at_once = [old for old in superseded if old != self._best] if self.keep > 1 else []
            gone = self.place.commit(name, manifest, at_once)
        except BaseException as error:
            attempt(lambda: self.place.discard(name))
            path, why = self.place.path(name), " ".join(str(error).split())
            said = f"checkpoint {path} could not be written: {why}"
            print(f"hpcai: warning: {said}; the run goes on; {self.last}", file=sys.stderr, flush=True)
            raise CheckpointError(said) from None
        self._good(name)
        self._best = best
        self._whole.difference_update(superseded)
        for old in superseded:
            if old not in gone:
                attempt(functools.partial(self.place.remove, old))

    def has(self, name: str) -> bool:
        """Return whether that checkpoint is complete: its manifest has this format, and all its shards have the right length."""
        if name not in self._whole and format.complete(self.place, name):
            self._whole.add(name)
        return name in self._whole

    def _good(self, name: str) -> None:
        self.last = f"the last good checkpoint is {self.place.path(name)}"
        self._whole.add(name)

    def _check_sizes(self, name: str, entries: list[dict[str, Any]]) -> None:
        found = self.place.sizes(name)
        for entry in entries:
            file, size = entry["file"], entry["bytes"]
            if entry["runs"] and found.get(file) != size:
                raise CheckpointError(
                    f"rank 0 does not find the shard that rank {entry['rank']} wrote ({file}, {size:,} bytes); the folder must "
                    "be on a file system that all nodes share, see --checkpoint-dir"
                )

    def _best_beside(self, following: str, meta: dict[str, Any]) -> str:
        """Return the name of the best checkpoint once `following` is complete; empty if none is kept. If the best epoch's
        checkpoint could not be written, the one that was kept before stays.
        """
        best = meta["progress"].get("best") if meta.get("keeps_best") else None
        if best is None:
            return ""
        name = naming.name_of(best["step"])
        return name if name == following or self.has(name) else self._best

    def _best_by(self, name: str) -> str:
        """Return the name of the best checkpoint according to this one's manifest; empty if it is not there."""
        try:
            step = format.opened(self.place, name).meta.get("best_kept")
        except Broken:
            return ""
        return naming.name_of(step) if step is not None and self.has(naming.name_of(step)) else ""

    def _superseded(self, spared: set[str]) -> list[str]:
        """List the checkpoints beyond `keep` once the next one is complete. Broken and `spared` checkpoints are not counted, and
        stay.
        """
        others = [name for name in self.place.names() if name not in spared and self.has(name)]
        return others[: max(0, len(others) - (self.keep - 1))]


def attempt(work: Callable[[], T]) -> T | None:
    """Return work(), or None with a warning after an OSError. The next checkpoint tries again."""
    try:
        return work()
    except OSError as error:
        print(f"hpcai: warning: {error}", file=sys.stderr, flush=True)
        return None
