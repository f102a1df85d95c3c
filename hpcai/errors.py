"""The project's exceptions. Each message says what was given, what was wanted, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HpcaiError(Exception):
    """The base of all errors of hpcai. `exit_code` is the exit code of a program that ends with the error. `everywhere` is True
    where all ranks raise the error, so that they can end together.
    """

    exit_code = 1
    everywhere = False


class UsageError(HpcaiError):
    """An option, argument or call that is invalid, or incompatible with others."""

    exit_code = 2


class DataError(HpcaiError):
    """Data is absent, damaged, or of another form than was given."""


class CheckpointError(HpcaiError):
    """A checkpoint is absent, damaged, or belongs to another model."""


class LaunchError(HpcaiError):
    """MPI cannot start: its library is absent or does not belong to the launcher; or new ranks cannot be started."""


class FolderTaken(HpcaiError):
    """Another run writes into the folder. The exit code is that of sysexits.h for "try again later"."""

    exit_code = 75


class RankMismatch(HpcaiError):
    """Ranks called different collectives, or the same one with different shapes, dtypes or operations."""


class RankFailed(HpcaiError):
    """Another rank ended while this one waited for it."""


class RanksLost(HpcaiError):
    """The ranks that failed had the only copies of some state: the run can go on from a checkpoint only."""

    exit_code = 85


class StallError(HpcaiError):
    """Another rank did not come to a collective, or send or receive a message, within the time limit."""


class Leave(HpcaiError):
    """A run ended early because it was asked to, with everything written. `exit_code` says whether to start it again."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class NonFiniteError(HpcaiError):
    """A loss, gradient or parameter became NaN or infinite."""


def one_line(error: BaseException) -> str:
    """The text of an error as commands print it: one line of printable characters, shortened beyond LONGEST_LINE."""
    said = " ".join("".join(one if one.isprintable() else " " for one in str(error)).split())
    return said if len(said) <= LONGEST_LINE else f"{said[: LONGEST_LINE // 2]} ... {said[-LONGEST_LINE // 3 :]}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count and its noun.

    >>> counted(1, "rank"), counted(0, "rank"), counted(1000, "class", "classes")
    ('1 rank', '0 ranks', '1,000 classes')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def meant(word: str, words: Iterable[str]) -> str:
    """The one of `words` that is nearest to `word`, as the end of an error message; empty if none is near.

    >>> meant("Adamm", ["adam", "sgd"]), meant("other", ["adam", "sgd"])
    (' (is adam meant?)', '')
    """
    near = difflib.get_close_matches(word[:LONGEST_WORD].lower(), list(words), 1)
    return f" (is {near[0]} meant?)" if near else ""


LONGEST_WORD = 60
"""How many characters of a word are compared with others."""

LONGEST_LINE = 1500
"""The length in characters up to which an error's line is printed whole."""
