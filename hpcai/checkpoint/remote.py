"""Checkpoints at any URL that fsspec knows, such as an S3 bucket."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from hpcai.checkpoint.naming import MANIFEST, OURS, in_order, next_previous
from hpcai.errors import CheckpointError

BUCKETS = frozenset(("s3", "gs", "gcs", "abfs", "az", "oci", "oss"))
"""URL schemes without folders: making a folder would make a bucket of that name."""


class Remote:
    """Checkpoints below a URL that fsspec knows, such as s3://bucket/run (with s3fs; $AWS_ENDPOINT_URL: the address of S3)."""

    def __init__(self, url: str):
        """Raises: CheckpointError if fsspec, or the package that it needs for this scheme, is not installed."""
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise CheckpointError(f"{url} needs fsspec: pip install 'hpcai[s3]'") from None
        self.url = url.rstrip("/")
        try:
            self.system, self.root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise CheckpointError(f"{url} cannot be opened: {error}; for s3:// pip install 'hpcai[s3]'") from None

    def names(self) -> list[str]:
        """List the checkpoints that have a manifest."""
        return [name for name in in_order(self._within(self.root)) if self._do("exists", self._at(name, MANIFEST))]

    def path(self, name: str) -> str:
        """Return the checkpoint's URL, for messages."""
        return f"{self.url}/{name}"

    def files(self, name: str) -> dict[str, int]:
        """List the checkpoint's objects with their sizes in bytes; -1 for anything that is not a file."""
        found = self._listed(self._at(name))
        return {file: about["size"] if _is_file(about) else -1 for file, about in found.items()}

    def read(self, name: str, file: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return an object's bytes from start to stop (None: to its end). Raises: OSError."""
        return self._do("cat_file", self._at(name, file), start=start or None, end=stop)

    def write(self, name: str, file: str, content: memoryview) -> None:
        """Write an object of the checkpoint under way."""
        self._delete(name, MANIFEST)  # of an earlier checkpoint of that name
        self._make_folder(self._at(name))
        self._do("pipe_file", self._at(name, file), bytes(content))

    def sizes(self, name: str) -> dict[str, int]:
        """List the objects of the checkpoint under way with their sizes in bytes."""
        return self.files(name)

    def commit(self, name: str, manifest: bytes, superseded: Sequence[str] = ()) -> list[str]:
        """Write the manifest, which makes the checkpoint complete. Superseded ones are left to `remove`, so the list is empty."""
        self._do("pipe_file", self._at(name, MANIFEST), manifest)
        return []

    def remove(self, name: str) -> None:
        """Delete a checkpoint, its manifest first."""
        self._delete(name, MANIFEST)
        self.discard(name)

    def set_aside(self, names: list[str]) -> str:
        """Copy checkpoints to previous-N and delete the originals, the newest first. Others' objects stay. Returns that URL."""
        aside = next_previous(self._within(self.root))
        for name in reversed(in_order(names)):
            self._make_folder(self._at(f"{aside}/{name}"))
            for file in sorted(self._ours(name), key=lambda file: file == MANIFEST):
                self._do("copy", self._at(name, file), self._at(f"{aside}/{name}", file))
            self.remove(name)
        return self.path(aside)

    def discard(self, name: str | None = None) -> None:
        """Delete shards that have no manifest, of one checkpoint or of all. Other objects may be somebody's, and stay."""
        for one in in_order(self._within(self.root)) if name is None else [name]:
            shards = self._ours(one)
            if shards and MANIFEST not in shards:
                self._do("rm", [self._at(one, file) for file in shards])
                if self._has_folders() and not self._within(self._at(one)):
                    self._do("rmdir", self._at(one))

    def probe(self) -> None:
        """Write and delete an object. Raises: OSError."""
        self._make_folder(self.root)
        self._do("pipe_file", f"{self.root}/.writable", b"\n")
        self._do("rm_file", f"{self.root}/.writable")

    def _at(self, name: str, file: str = "") -> str:
        return f"{self.root}/{name}/{file}".rstrip("/")

    def _within(self, folder: str) -> list[str]:
        """List the names in a folder."""
        return list(self._listed(folder))

    def _listed(self, folder: str) -> dict[str, dict[str, Any]]:
        """Return fsspec's description of each entry of a folder, by name; empty if there is no such folder."""
        try:
            found = self._do("ls", folder, detail=True)
        except FileNotFoundError:
            return {}
        return {one["name"].rstrip("/").rpartition("/")[2]: one for one in found}

    def _ours(self, name: str) -> list[str]:
        """List the files of a checkpoint with names of hpcai's."""
        return [file for file in self._within(self._at(name)) if OURS.fullmatch(file)]

    def _has_folders(self) -> bool:
        protocols = self.system.protocol
        return BUCKETS.isdisjoint([protocols] if isinstance(protocols, str) else protocols)

    def _make_folder(self, folder: str) -> None:
        if self._has_folders():
            self._do("makedirs", folder, exist_ok=True)

    def _delete(self, name: str, file: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._do("exists", self._at(name, file)):
                self._do("rm_file", self._at(name, file))

    def _do(self, verb: str, *arguments: Any, **more: Any) -> Any:
        """Call a method of the file system, without its cache of listings. Raises: OSError for any failure."""
        self.system.invalidate_cache()
        try:
            return getattr(self.system, verb)(*arguments, **more)
        except OSError:
            raise
        except Exception as error:  # from any library behind fsspec
            raise OSError(f"{self.url}: {type(error).__name__}: {error}") from error


def _is_file(about: dict[str, Any]) -> bool:
    """Return whether fsspec describes a regular file whose size is known."""
    return about.get("type") == "file" and not about.get("islink") and type(about.get("size")) is int
