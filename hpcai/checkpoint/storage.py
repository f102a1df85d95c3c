"""The places where checkpoints are kept: a folder, local or shared by nodes, or any URL that fsspec knows.

A place holds checkpoints by step, each a few files. It becomes one at a single instant, `commit`: a local folder by its renaming,
elsewhere, where nothing can be renamed, by its manifest, which is written last and deleted first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hpcai.checkpoint import naming
from hpcai.checkpoint.local import Local
from hpcai.checkpoint.remote import Remote


class Store(Protocol):
    """Checkpoints by name, which is `named(step)`. What goes wrong is an OSError."""

    def names(self) -> list[str]:
        """All checkpoints, oldest first."""

    def path(self, name: str) -> str:
        """The checkpoint's path or URL, for messages."""

    def files(self, name: str) -> dict[str, int]:
        """List a checkpoint's files with their sizes in bytes; -1 for what is not a regular file. Empty if it is absent."""

    def read(self, name: str, file: str, start: int = 0, stop: int | None = None) -> bytes:
        """A file of a checkpoint, or its bytes from start to stop; fewer where it ends earlier."""

    def write(self, name: str, file: str, content: memoryview) -> None:
        """A file of a checkpoint that is not complete yet, durable on return."""

    def sizes(self, name: str) -> dict[str, int]:
        """The files of a checkpoint that is not complete yet, and their bytes."""

    def commit(self, name: str, manifest: bytes, superseded: Sequence[str] = ()) -> list[str]:
        """Make it complete, durable on return. An older one of that name is replaced.

        Superseded ones are deleted where that is done by the same sync, and returned. After a crash either of both may have
        happened, so `superseded` must not be all.
        """

    def remove(self, name: str) -> None:
        """Delete a checkpoint."""

    def set_aside(self, names: list[str]) -> str:
        """Move checkpoints where `names` has them no more; returns the place where they are then."""

    def discard(self, name: str | None = None) -> None:
        """Delete what was written of a checkpoint that did not become complete, or of all such, and what is kept for the next."""

    def probe(self) -> None:
        """Raise an OSError or CheckpointError if nothing can be written here."""


def place(where: str | Path) -> Store:
    """The place of that name: a URL if it has a scheme, else a folder."""
    folder = local(where)
    return Remote(str(where)) if folder is None else Local(folder)


def local(where: str | Path) -> Path | None:
    """The folder that a place of that name is; None for one that is elsewhere.

    >>> local("file:///scratch/run") == local("/scratch/run") == Path("/scratch/run"), local("s3://bucket/run")
    (True, None)
    """
    path = str(where).removeprefix("file://").removeprefix("local://")
    return None if "://" in path else Path(path)


def located(where: str) -> tuple[Store, str]:
    """The place and the name of one checkpoint. People may name a link to one; within places none is followed.

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
