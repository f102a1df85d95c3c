"""Checkpoints: a folder step-N with the arrays as safetensors and a manifest that carries their checksum.

A checkpoint is written beside its final name, synced and renamed, so that at any instant the folder holds whole ones only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from hpcai.errors import CheckpointError
from hpcai.xp import Array

FORMAT = 1


class Checkpoint(NamedTuple):
    """Flat arrays by name, and what else a run needs to go on (JSON)."""

    arrays: dict[str, Array]
    meta: dict[str, Any]


def write(folder: Path, step: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder/step-N` durably, then drop all but the newest `keep`. Call on one rank. Returns its path."""
    from safetensors.numpy import save

    path, beside = folder / f"step-{step:09d}", folder / f".writing-{step:09d}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    raw = save(checkpoint.arrays)
    manifest = {"format": FORMAT, "step": step, "sha256": hashlib.sha256(raw).hexdigest(), "meta": checkpoint.meta}
    _write_synced(beside / "arrays.safetensors", raw)
    _write_synced(beside / "manifest.json", json.dumps(manifest, indent=1).encode())
    if path.exists():
        shutil.rmtree(path)
    beside.rename(path)
    _sync_folder(folder)
    for old in all_in(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def read(path: Path) -> tuple[int, Checkpoint]:
    """Step and content of one checkpoint.

    Raises: CheckpointError if it is absent, incomplete, of another format, or differs from its checksum.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    advice = "delete that folder to go on from an older one, or name another with --resume"
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        raw = (path / "arrays.safetensors").read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint ({Path(error.filename).name} is missing); {advice}") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"checkpoint {path} is corrupt: manifest.json is not JSON ({error}); {advice}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} is corrupt or of another version: its manifest does not say format {FORMAT}; {advice}"
        )
    if hashlib.sha256(raw).hexdigest() != manifest.get("sha256"):
        raise CheckpointError(f"checkpoint {path} is corrupt: arrays.safetensors differs from its checksum; {advice}")
    try:
        return int(manifest["step"]), Checkpoint(load(raw), manifest["meta"])
    except (KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} is corrupt ({type(error).__name__}: {error}); {advice}") from None


def all_in(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
