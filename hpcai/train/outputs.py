"""The files that a run writes, and a check that each can be written."""

from __future__ import annotations

import os
from pathlib import Path

from hpcai.errors import UsageError
from hpcai.train.options.options import Options


def metrics_path(options: Options) -> Path:
    """Return the path of the metrics file."""
    return Path(options.metrics_file) if options.metrics_file else Path(options.run_dir or "runs") / "metrics.jsonl"


def files(options: Options) -> list[Path]:
    """Return all files that a run with these options writes, except checkpoints."""
    folder = Path(options.run_dir or "runs")
    if options.find_lr:
        return [folder / "find-lr.json", *[folder / "find-lr.png"] * options.plot]
    trace_files = [Path(options.trace_file)] if options.trace_file else []
    pictures = [folder / "loss.png", *(path.with_suffix(".png") for path in trace_files)] if options.plot else []
    return [folder / "summary.json", metrics_path(options), *trace_files, *pictures]


def require_writable(options: Options) -> None:
    """Raise UsageError for a file that cannot be written, also for a file that is opened only at the run's end. On rank 0."""
    paths = [Path(os.path.realpath(path)) for path in files(options)]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UsageError(f"two of the run's files would be {path}; give --metrics-file and --trace-file different files")
        _try_to_open(path)


def _try_to_open(path: Path) -> None:
    """Raise UsageError if the file cannot be opened for writing. An existing file is unchanged; only the folder is created."""
    if path.exists() and not (path.is_file() or path.samefile(os.devnull)):
        raise UsageError(
            f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}, but must be a file to write; give another path"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not path.exists()
        path.open("ab").close()
        if fresh:
            path.unlink()
    except OSError as error:
        raise UsageError(f"{path} cannot be written to: {error.strerror}; give another path") from None
