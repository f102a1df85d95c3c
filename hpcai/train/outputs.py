"""The files that a run writes, and whether they can be written."""

from __future__ import annotations

import os
from pathlib import Path

from hpcai.errors import UsageError
from hpcai.train.options.options import Options


def metrics_path(options: Options) -> Path:
    """Return the path of the metrics file."""
    return Path(options.metrics_file) if options.metrics_file else Path(options.run_dir or "runs") / "metrics.jsonl"


def files(options: Options) -> list[Path]:
    """All that a run with these options writes, but checkpoints."""
    folder = Path(options.run_dir or "runs")
    if options.find_lr:
        return [folder / "find-lr.json", *[folder / "find-lr.png"] * options.plot]
    trace_files = [Path(options.trace_file)] if options.trace_file else []
    pictures = [folder / "loss.png", *(path.with_suffix(".png") for path in trace_files)] if options.plot else []
    return [folder / "summary.json", metrics_path(options), *trace_files, *pictures]


def require_writable(options: Options) -> None:
    """On rank 0: raise UsageError for a file that cannot be written, also one that only the run's end opens."""
    paths = [Path(os.path.realpath(path)) for path in files(options)]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UsageError(
                f"{path} would be two of the run's files at once; give --metrics-file and --trace-file files of their own"
            )
        _try_to_open(path)


def _try_to_open(path: Path) -> None:
    """Leaves a file as it is, and makes none, but the folder."""
    if path.exists() and not (path.is_file() or path.samefile(os.devnull)):
        raise UsageError(
            f"{path} is {'a folder' if path.is_dir() else 'no file'}, where a file is to be written; give another path"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not path.exists()
        path.open("ab").close()
        if fresh:
            path.unlink()
    except OSError as error:
        raise UsageError(f"{path} cannot be written to: {error.strerror}; give another path") from None
