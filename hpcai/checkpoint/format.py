"""The format of checkpoints: a folder step-N with a manifest, and a shard for each rank that had something to write.

A shard (see shards.py) holds runs of its writer's flat arrays. The manifest (see manifest.py) says how the flat arrays were laid
out (`layouts`, one for each place along the pipeline and tensor axes) and where each run lies. With it any number of ranks on any
mesh finds what it needs. The manifest has checksums of all bytes, also of its own, so that a reader detects changed bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpcai import arena
from hpcai.checkpoint import agreement, boxes, storage
from hpcai.checkpoint import manifest as manifests
from hpcai.checkpoint.boxes import Part
from hpcai.checkpoint.local import Local
from hpcai.checkpoint.naming import MANIFEST
from hpcai.checkpoint.schema import Refused
from hpcai.checkpoint.shards import Stored, checksum, header
from hpcai.checkpoint.storage import Store
from hpcai.errors import CheckpointError
from hpcai.xp import Array


class Broken(CheckpointError):
    """A checkpoint that cannot be read: absent, incomplete, damaged, or of another format."""


class Laid(NamedTuple):
    """The layout of a writer's flat arrays: their length in elements, and the parts of whole arrays in them."""

    size: int
    parts: tuple[Part, ...]


class Checkpoint(NamedTuple):
    """Flat arrays by name, in the layout of one process, and the other data that a run needs to resume (`meta`, JSON)."""

    arrays: dict[str, Array]
    meta: dict[str, Any]


class Opened:
    """A checkpoint whose manifest was read; `read_into` and `whole` read runs from its shards."""

    def __init__(self, place: Store, name: str, manifest: dict[str, Any]):
        self.place, self.name, self.manifest = place, name, manifest
        self.step, self.meta = int(manifest["step"]), manifest["meta"]
        self.layouts = [Laid(size, tuple(boxes.part(*one) for one in parts)) for size, parts in manifest["layouts"]]
        self.shards = [(one, [Stored(*run) for run in one["runs"]]) for one in manifest["shards"]]
        self.dtypes = {run.array: np.dtype(run.dtype) for _, runs in self.shards for run in runs}
        self._runs: dict[tuple[int, str], list[tuple[dict[str, Any], Stored]]] = {}
        for shard, runs in self.shards:
            for run in runs:
                self._runs.setdefault((shard["layout"], run.array), []).append((shard, run))
        self._checked: set[str] = set()

    @property
    def path(self) -> str:
        """The checkpoint's path or URL, for messages."""
        return self.place.path(self.name)

    def read_into(self, into: Array, array: str, layout: int, wanted: Sequence[slice], partial: bool = False) -> None:
        """Fill the wanted slices of `into`, a flat array of that layout. partial: elements in no run stay as they are.

        Raises: Broken if bytes are missing or differ from their checksum.
        """
        filled = []
        for shard, run in self._runs.get((layout, array), []):
            found = [boxes.overlap(slice(run.start, run.stop), want) for want in wanted]
            found = [one for one in found if one.start < one.stop]
            if found:
                values = self._values(shard, run)
                for one in found:
                    into[one] = values[one.start - run.start : one.stop - run.start]
                filled += found
        if not partial and not boxes.covered(wanted, filled):
            raise self._broken(f"it lacks a part of {array}")

    def names(self, layout: int) -> set[str]:
        """Return the names of the arrays of which that layout's ranks wrote runs."""
        return {array for where, array in self._runs if where == layout}

    def whole(self, array: str, layout: int) -> Array:
        """Return an array that is not laid out like the parameters: its runs, joined. Raises: Broken."""
        runs = sorted(self._runs[layout, array], key=lambda one: one[1].start)
        return np.concatenate([self._values(shard, run) for shard, run in runs])

    def _values(self, shard: dict[str, Any], run: Stored) -> Array:
        """Return a run's values, checked, and check its file's header the first time. Raises: Broken."""
        file = shard["file"]
        if file not in self._checked:
            end, wanted = shard["header"]
            raw = self._bytes(file, 0, end)
            if checksum(raw) != wanted:
                raise self._broken(f"{file} differs from its checksum")
            said = header([Stored(*one) for one in shard["runs"]])
            if int.from_bytes(raw[:8], "little") != end - 8 or raw[8:].rstrip(b" ") != said:
                raise self._broken(f"{file} has a header that differs from {MANIFEST}")
            self._checked.add(file)
        dtype = np.dtype(run.dtype)
        raw = self._bytes(file, run.at, run.at + (run.stop - run.start) * dtype.itemsize)
        if checksum(raw) != run.checksum:
            raise self._broken(f"{file} differs from its checksum, in {run.array}[{run.start}:{run.stop}]")
        return np.frombuffer(raw, dtype)

    def _bytes(self, file: str, start: int, stop: int) -> bytes:
        try:
            raw = self.place.read(self.name, file, start, stop)
        except FileNotFoundError:
            raise self._broken(f"{file} is missing") from None
        except OSError as error:
            raise self._broken(f"{file} cannot be read ({error})") from None
        if len(raw) != stop - start:
            raise self._broken(f"{file} is cut short")
        return raw

    def _broken(self, what: str) -> Broken:
        return Broken(f"checkpoint {self.path} is corrupt: {what}")


def opened(place: Store, name: str) -> Opened:
    """Open the checkpoint of that name, and check its manifest as far as possible without reading shards.

    Raises: Broken, which names file and field, if it is absent, incomplete, damaged, or of another format.
    """
    path = place.path(name)
    try:
        there = place.files(name)
        if MANIFEST not in there:
            raise Broken(f"{path} is not a complete checkpoint ({MANIFEST} is missing)")
        if there[MANIFEST] < 0:
            raise Broken(f"checkpoint {path} is corrupt: {MANIFEST} is no regular file")
        raw = place.read(name, MANIFEST, 0, manifests.LARGEST_BYTES + 1)
    except OSError as error:
        raise Broken(f"checkpoint {path} cannot be read: {error}") from None
    try:
        fields = manifests.read(raw, name)
    except Refused as refused:
        raise Broken(f"checkpoint {path} is corrupt: {MANIFEST}{': ' if refused.field else ' '}{refused}") from None
    if wrong := agreement.files(fields, there):
        raise Broken(f"checkpoint {path} is corrupt: {wrong}")
    return Opened(place, name, fields)


def complete(place: Store, name: str) -> bool:
    """Return whether there is a checkpoint of this format whose shards have the right length; their bytes are not checked."""
    try:
        opened(place, name)
    except Broken:
        return False
    return True


def fill(
    into: Array, array: str, mine: Laid, wanted: Sequence[slice], source: Opened, partial: bool = False, like: int = 0
) -> None:
    """Fill the wanted slices of `into`, a flat array laid out as `mine`, from a checkpoint's runs in any layout.

    If a writer's layout equals `mine`, its bytes are copied, padding between arrays included; `like` is the layout to prefer if
    several do. Otherwise each array is copied box by box, and the padding of `into` stays as it is. Raises: Broken.
    """
    same = [i for i, laid in enumerate(source.layouts) if laid == mine]
    if same:
        source.read_into(into, array, like if like in same else same[0], wanted, partial)
        return
    for i, laid in enumerate(source.layouts):
        shared = boxes.shared(laid.parts, mine.parts, wanted)
        theirs = np.zeros(laid.size, into.dtype)  # only the pages that are filled take memory
        source.read_into(theirs, array, i, boxes.merged(one.run for one in shared), partial)
        for one in shared:
            one.copy(theirs, into)


def digest(path: str) -> str:
    """Return the checksum of a checkpoint's manifest; empty if it cannot be read."""
    place, name = storage.located(path)
    try:
        return checksum(place.read(name, MANIFEST))
    except OSError:
        return ""


def read(path: str | Path) -> tuple[int, Checkpoint]:
    """Return step and content of one checkpoint, a folder or a URL. Arrays of all ranks are joined, as one process lays them out.

    Memories of compression are one array `memories` (dp, n), a row for each data-parallel rank.
    Raises: CheckpointError if it is absent, incomplete, damaged, of another format, or does not fit into memory.
    """
    where, name = storage.located(str(path))
    found = opened(where, name)
    try:
        return found.step, Checkpoint(_together(found), found.meta)
    except MemoryError:
        nbytes = sum(shard["bytes"] for shard, _ in found.shards)
        raise CheckpointError(
            f"checkpoint {found.path} has {nbytes:,} bytes, for which there is not enough memory here"
        ) from None


def _together(found: Opened) -> dict[str, Array]:
    """Return a checkpoint's arrays in the layout of one process."""
    shapes = {name: tuple(shape) for name, shape in found.meta["identity"]["parameters"]}
    whole = laid_out(arena.layout(shapes))
    arrays: dict[str, Array] = {}
    memories = sorted((name for name in found.dtypes if name.startswith("memory.")), key=lambda name: int(name[7:]))
    for name, dtype in found.dtypes.items():
        if name.startswith("reducer."):
            if len(found.layouts) == 1:
                arrays[name] = found.whole(name, 0)
        elif name not in memories:
            arrays[name] = np.zeros(whole.size, dtype)
            fill(arrays[name], name, whole, [slice(0, whole.size)], found, partial=name == "owed")
    if memories:
        arrays["memories"] = np.zeros((found.meta["mesh"]["dp"], whole.size), found.dtypes[memories[0]])
        for row, name in zip(arrays["memories"], memories, strict=True):
            fill(row, name, whole, [slice(0, whole.size)], found, partial=True)
    return arrays


def laid_out(where: arena.Layout) -> Laid:
    """Return the layout of a model that one rank holds whole."""
    return Laid(where.size, tuple(Part(s.name, s.shape, tuple((0, n) for n in s.shape), s.start) for s in where.slots))


def all_in(folder: Path) -> list[Path]:
    """Return the paths of the checkpoints in a local `folder`, oldest first."""
    return [folder / name for name in Local(folder).names()]


def manifest(step: int, meta: dict[str, Any], layouts: Iterable[Laid], shards: list[dict[str, Any]]) -> bytes:
    """Return the bytes of the manifest's file."""
    laid = [[one.size, [list(part) for part in one.parts]] for one in layouts]
    return manifests.write({"format": manifests.FORMAT, "step": step, "meta": meta, "layouts": laid, "shards": shards})
