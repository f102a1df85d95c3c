"""Quoting of texts in a batch script: texts that a line cannot hold are refused, and words are quoted for Slurm."""

from __future__ import annotations

import re
import unicodedata

from hpcai.errors import UsageError

LINE_BYTES = 4096
"""So long may what follows #SBATCH be: older Slurms read it into a buffer of 8 KiB, without a look at its end."""

_PLAIN = re.compile(r"[A-Za-z0-9@%+=:,./_-]+")
_JOB_OF_JOBS = re.compile("(pack|het)(?=job)", re.IGNORECASE)


def check(what: str, text: str) -> None:
    """Raise UsageError if the text has a character that ends a line, or that no line of UTF-8 can show."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") or character in "\u2028\u2029":
            raise UsageError(f"{what} has {character!r} in it, which a batch script cannot hold; take it out: {_short(text)}")


def for_slurm(what: str, text: str) -> str:
    r"""One word behind #SBATCH. Slurm has rules of its own: a backslash counts in any quotes, older ones know double quotes
    alone, a # begins a comment, and the words packjob and hetjob are overwritten wherever they stand.

    >>> print(for_slurm("--name", "plain"), for_slurm("--name", "a 'b' #1"))
    plain "a 'b' \#1"

    Raises: UsageError if it is too long.
    """
    quoted = text if _PLAIN.fullmatch(text) and not _JOB_OF_JOBS.search(text) else _in_quotes(text)
    if len(quoted.encode()) > LINE_BYTES:
        raise UsageError(f"{what} is too long for a line that Slurm reads ({LINE_BYTES:,} bytes): {_short(text)}")
    return quoted


def _in_quotes(text: str) -> str:
    escaped = re.sub(r'[\\"#]', r"\\\g<0>", text)
    return f'"{_JOB_OF_JOBS.sub(lambda found: found[0] + chr(92), escaped)}"'


def log_pattern(folder: str, name: str) -> str:
    """The name of a log in a folder, for --output: in `name` Slurm replaces %j and its like, in the folder it must not.

    >>> log_pattern("/runs/50%", "slurm-%j.log")
    '/runs/50%%/slurm-%j.log'

    Raises: UsageError for a folder with a backslash, which switches all replacing off.
    """
    if "\\" in folder:
        raise UsageError(
            f"Slurm writes no log into a folder with a backslash in its name; name another by --run-dir than {_short(folder)}"
        )
    return f"{folder.rstrip('/').replace('%', '%%')}/{name}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}")
