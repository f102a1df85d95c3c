"""A table's text: its encoding, its first line, and the rest in blocks of whole lines."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from hpcai.data.opening import kind_of, printable
from hpcai.errors import DataError

BLOCK = 1 << 20
"""How many characters are read at a time; the rest of the last line follows."""

MOST_LINE = 64 << 20
"""The limit for characters of a line. MOST_COLUMNS is that for its cells: enough for a million columns."""

MOST_COLUMNS = 1 << 20

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_ENCODINGS = {"": "utf-8-sig", "UTF-16": "utf-16", "UTF-32": "utf-32"}
_SEP = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_SHOWN, _SHOWN_OF_NAME = 30, 60


class Header(NamedTuple):
    """names: of the columns, "" for an index without a name; lines: how many lines the header takes; notes: for the user."""

    names: list[str]
    delimiter: str
    lines: int
    notes: tuple[str, ...]


@contextmanager
def decoded(path: Path, content: BinaryIO) -> Iterator[tuple[TextIO, tuple[str, ...]]]:
    """Yield the text of a file, in UTF-8 or what its byte order mark says, and notes for the user.

    Raises: DataError, also from reads.
    """
    first = cast(Any, content).peek(4096)
    kind = kind_of(first)
    if kind not in _ENCODINGS:
        raise DataError(f"{path} is not a table but {kind}; wanted CSV")
    if not kind and b"\0" in first:
        raise DataError(
            f"{path} has null bytes, so it is not a table, or is UTF-16 without a byte order mark: `iconv -f UTF-16LE -t UTF-8` "
            "converts that"
        )
    text = io.TextIOWrapper(content, _ENCODINGS[kind], newline="")
    try:
        yield text, (f"its text is {kind}",) if kind else ()
    except UnicodeDecodeError as error:
        near = bytes(error.object[max(0, error.start - 20) : error.start + 20])
        hint = "" if kind else "; if it is Latin-1, `iconv -f latin1 -t utf-8` converts it"
        raise DataError(f"{path} is not {kind or 'UTF-8'} as it should be: {error.reason} at {near!r}{hint}") from None
    finally:
        text.detach()


def header(path: Path, file: TextIO, wanted: Sequence[str]) -> Header:
    """Read the names of the columns. The delimiter is the first that gives all wanted names, commas tried first; else the one
    that gives most names. Raises: DataError.
    """
    text, lines, given = _first_line(path, file)
    if text.count(max(_DELIMITERS, key=text.count)) >= MOST_COLUMNS:
        raise DataError(f"{path} has more than {MOST_COLUMNS:,} columns; leave some out")
    if "\0" in text:
        raise DataError(f"{path} line 1 has a null character; is it a table?")
    tried = [given] if given else [one for one in _DELIMITERS if one in text] or [","]
    found = {delimiter: _names(path, text, delimiter) for delimiter in tried}
    fits = [delimiter for delimiter, names in found.items() if len(names) > 1 and set(wanted) <= set(names)]
    delimiter = fits[0] if fits and wanted else max(found, key=lambda one: len(found[one]))
    said = (f"its cells are separated by {_DELIMITERS.get(delimiter, repr(delimiter))}",) if delimiter != "," and fits else ()
    return Header(found[delimiter], delimiter, lines, said)


def blocks(path: Path, file: TextIO, begin: int) -> Iterator[str]:
    """Yield the rest of a text as blocks of whole lines, some BLOCK characters each. begin: how many lines have been read."""
    while text := file.read(BLOCK):
        if not text.endswith("\n"):
            rest = file.readline(MOST_LINE)
            if len(rest) == MOST_LINE:
                raise DataError(f"{path} has a line of more than {MOST_LINE:,} characters after line {begin}; is it a table?")
            text += rest
        if "\0" in text:
            line = begin + lines_in(text[: text.index("\0")]) + 1
            raise DataError(f"{path} line {line} has a null character; is it a table?")
        yield text
        begin += lines_in(text)


def lines_in(text: str) -> int:
    """Count the lines that end in a block, with any line ending."""
    return text.count("\n") + (text.count("\r") - text.count("\r\n") if "\r" in text else 0)


def plain_name(name: str) -> str:
    """Return a column's name for comparisons: without spaces around it, and with accents in one form (NFC)."""
    return unicodedata.normalize("NFC", name.strip("\ufeff \t\r\n\v\f\xa0"))


def listed(names: Sequence[str]) -> str:
    """Return names for a message, the first _SHOWN of them."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name[:_SHOWN_OF_NAME]) or "(no name)" for name in names[:_SHOWN]) + more


def _first_line(path: Path, file: TextIO) -> tuple[str, int, str]:
    """Return the header with its quoted line breaks, the number of lines read, and the delimiter of a line like `sep=;`."""
    parts: list[str] = []
    lines = size = quotes = 0
    given = ""
    while line := file.readline(MOST_LINE):
        lines += 1
        size += len(line)
        if size >= MOST_LINE:
            raise DataError(f"{path} begins with a line of more than {MOST_LINE:,} characters; is it a table?")
        if not parts and line.isspace():
            continue
        if not parts and (said := _SEP.fullmatch(line)):
            given = said[1]
            continue
        parts.append(line)
        quotes += line.count('"')
        if quotes % 2 == 0:
            break
    return "".join(parts), lines, given


def _names(path: Path, text: str, delimiter: str) -> list[str]:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"{path} line 1 does not name columns: {printable(str(error))}") from None
    return [plain_name(name) for name in next((row for row in rows if row), [])]
