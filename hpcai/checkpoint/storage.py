"""The places where checkpoints are kept: a folder, local or shared by nodes, or any URL that fsspec knows.

A place holds checkpoints by step, each of a few files. A checkpoint becomes complete at a single instant, `commit`. A local
folder is renamed at that instant. Elsewhere nothing can be renamed, so the manifest is written last and deleted first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hpcai.checkpoint import naming
from hpcai.checkpoint.local import Local
from hpcai.checkpoint.remote import Remote


class Store(Protocol):
    """A place for checkpoints, by name (`naming.name_of(step)`). Failures are raised as OSError."""

    def names(self) -> list[str]:
        """List the names of all checkpoints, oldest first."""

    def path(self, name: str) -> str:
        """Return the checkpoint's path or URL, for messages."""

    def files(self, name: str) -> dict[str, int]:
        """List a checkpoint's files with their sizes in bytes; -1 for what is not a regular file. Empty if it is absent."""

    def read(self, name: str, file: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return a file's bytes from start to stop (None: to its end); fewer if the file ends earlier."""

    def write(self, name: str, file: str, content: memoryview) -> None:
        """Write a file of a checkpoint that is not complete yet. The file is durable on return."""

    def sizes(self, name: str) -> dict[str, int]:
        """List the files of a checkpoint that is not complete yet, with their sizes in bytes."""

    def commit(self, name: str, manifest: bytes, superseded: Sequence[str] = ()) -> list[str]:
        """Make a checkpoint complete, durable on return. It replaces an older checkpoint of that name.

        Superseded checkpoints are deleted, and returned, where the same sync does it. After a crash either of the two may have
        happened without the other, so `superseded` must not name all checkpoints.
        """

    def remove(self, name: str) -> None:
        """Delete a checkpoint."""

    def set_aside(self, names: list[str]) -> str:
        """Move checkpoints to a new place, where `names` does not list them; returns that place."""

    def discard(self, name: str | None = None) -> None:
        """Delete the files of the unfinished checkpoint `name`; None: of all unfinished ones, and files kept for reuse."""

    def probe(self) -> None:
        """Raise an OSError or CheckpointError if nothing can be written here."""


def place(where: str | Path) -> Store:
    """Return the place of that name: Local for a folder, Remote for a URL elsewhere. Raises: CheckpointError (see Remote)."""
    folder = local(where)
    return Remote(str(where)) if folder is None else Local(folder)


def local(where: str | Path) -> Path | None:
    """Return the local folder that a path or URL names; None for a URL elsewhere.

    >>> local("file:///scratch/run") == local("/scratch/run") == Path("/scratch/run"), local("s3://bucket/run")
    (True, None)
    """
    path = str(where).removeprefix("file://").removeprefix("local://")
    return None if "://" in path else Path(path)


def located(where: str) -> tuple[Store, str]:
    """Return the place and the name of one checkpoint. `where` may be a link to it; within a place no link is followed.

    >>> place, name = located("s/run/step-000000020/")
    >>> place.path(name)
    's/run/step-000000020'
    """
    head, name = naming.split(where)
    found = place(head)
    if isinstance(found, Local) and (found.folder / name).is_symlink():
        resolved = (found.folder / name).resolve()
        return Local(resolved.parent), resolved.name
    return found, name
