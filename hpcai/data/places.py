"""Where data files are looked for."""

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
    """The first of these that is there. Raises: DataError where it may not be looked."""
    for path in paths:
        try:
            path.stat()
            return path
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            raise DataError(f"{str(path)!r} cannot be looked at: {getattr(error, 'strerror', None) or error}") from None
    return None
