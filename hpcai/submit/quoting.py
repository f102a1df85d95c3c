"""Quoting for batch scripts: words are quoted for Slurm, and texts that a line cannot hold are rejected."""

from __future__ import annotations

import re
import unicodedata

from hpcai.errors import UsageError

LINE_BYTES = 4096
"""The longest word behind #SBATCH, in bytes: older Slurms read it into a buffer of 8 KiB without checking its length."""

_PLAIN = re.compile(r"[A-Za-z0-9@%+=:,./_-]+")
_JOB_OF_JOBS = re.compile("(pack|het)(?=job)", re.IGNORECASE)


def check(what: str, text: str) -> None:
    """Raise UsageError if the text has a character that ends a line or controls the terminal, or that UTF-8 cannot encode."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") or character in "\u2028\u2029":
            raise UsageError(f"{what} has {character!r} in it, which a batch script cannot hold; take it out: {_short(text)}")


def for_slurm(what: str, text: str) -> str:
    r"""The text quoted as one word behind #SBATCH. Slurm has its own rules: a backslash is special in any quotes, older versions
    support double quotes only, a # begins a comment, and the words packjob and hetjob are overwritten wherever they are.

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
    """The path of a log for --output: Slurm replaces %j and the like in `name`, but not in the folder.

    >>> log_pattern("/runs/50%", "slurm-%j.log")
    '/runs/50%%/slurm-%j.log'

    Raises: UsageError for a folder with a backslash, which turns all replacements off.
    """
    if "\\" in folder:
        raise UsageError(
            f"Slurm writes no log into a folder with a backslash in its name, got {_short(folder)}; give another as --run-dir"
        )
    return f"{folder.rstrip('/').replace('%', '%%')}/{name}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}")
