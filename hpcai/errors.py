"""The project's exceptions. Each message says what was given, what was wanted, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HpcaiError(Exception):
    """Anything that hpcai refuses or cannot do. `exit_code` is what a program that ends by it returns; `everywhere`: whether all
    ranks raise it, so that they can end together.
    """

    exit_code = 1
    everywhere = False


class UsageError(HpcaiError):
    """An option or argument that makes no sense."""

    exit_code = 2


class DataError(HpcaiError):
    """Data that is absent, damaged, or of another form than was said."""


class CheckpointError(HpcaiError):
    """A checkpoint that is absent, damaged, or belongs to another model."""


class LaunchError(HpcaiError):
    """The launcher and the MPI library do not know each other."""


class FolderTaken(HpcaiError):
    """Another run writes into the folder. The exit code is that of sysexits.h for "try again later"."""

    exit_code = 75


class RankMismatch(HpcaiError):
    """Ranks called different collectives, or the same one with different shapes, dtypes or operations."""


class RankFailed(HpcaiError):
    """Another rank ended while this one waited for it."""


class RanksLost(HpcaiError):
    """Ranks failed together that had the only copies of something: the run can go on from a checkpoint alone."""

    exit_code = 85


class StallError(HpcaiError):
    """Another rank did not come to a collective within the time limit."""


class Leave(HpcaiError):
    """A run ended early, as it was asked to, with everything written. `exit_code` says whether it wants to be started again."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class NonFiniteError(HpcaiError):
    """A loss, gradient or parameter became NaN or infinite."""


def one_line(error: BaseException) -> str:
    """Return an error's text as a command prints it: one line that any terminal shows, however long or odd the input was."""
    said = " ".join("".join(one if one.isprintable() else " " for one in str(error)).split())
    return said if len(said) <= LONGEST_LINE else f"{said[: LONGEST_LINE // 2]} ... {said[-LONGEST_LINE // 3 :]}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun, such as 1 rank or 3 ranks.

    >>> counted(1, "rank"), counted(0, "rank"), counted(1000, "class", "classes")
    ('1 rank', '0 ranks', '1,000 classes')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def meant(word: str, words: Iterable[str]) -> str:
    """Return a suggestion from some words, to be appended to a refusal; empty if none is close.

    >>> meant("Adamm", ["adam", "sgd"]), meant("other", ["adam", "sgd"])
    (' (is adam meant?)', '')
    """
    near = difflib.get_close_matches(word[:LONGEST_WORD].lower(), list(words), 1)
    return f" (is {near[0]} meant?)" if near else ""


LONGEST_WORD = 60
"""So much of a word is compared with others."""

LONGEST_LINE = 1500
"""Characters of a line that ends a command."""
