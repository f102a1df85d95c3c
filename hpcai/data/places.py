"""The search for data files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcai.errors import DataError


def expanded(path: Path) -> Path:
    """Return the path with the home folder for ~. Raises: DataError if there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise DataError(f"{path}: there is no user {path.parts[0][1:]}; write ./{path} if the file is called so") from None


def first_there(paths: Sequence[Path]) -> Path | None:
    """Return the first of these paths that exists; None if none does. Raises: DataError if a path cannot be examined."""
    for path in paths:
        try:
            path.stat()
            return path
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            raise DataError(f"{str(path)!r} cannot be looked at: {getattr(error, 'strerror', None) or error}") from None
    return None
