"""From the project's docstrings to reStructuredText: sections become fields, and what is no markup is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

SECTIONS = ("Args", "Returns", "Raises", "Cost", "Source", "Sources", "State", "Payload")
_BEGINS = re.compile(rf"({'|'.join(SECTIONS)}): *(.*)")
_INLINE = re.compile(rf"(?<=[.)]) +(?=(?:{'|'.join(SECTIONS)}): )")
_ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")
_LITERAL = re.compile(r"``(.+?)``|`([^`]+)`")
_EMPHASIS = re.compile(r"(?<![\w*])\*(\w[\w -]*)\*(?![\w*])")


def to_rst(lines: Sequence[str]) -> list[str]:
    """A docstring as reStructuredText. Paragraphs stay; sections such as "Cost: ..." become fields; doctests stay as they are.

    >>> to_rst(["Sum `x`, of 2*n.", "", "Args: x: of any dtype.", "      op: sum or max.", "Cost: n."])
    ['Sum ``x``, of 2\\\\*n.', '', ':Args:', '    * **x**: of any dtype.', '    * **op**: sum or max.', ':Cost: n.', '']
    """
    made: list[str] = []
    for paragraph in _paragraphs(lines):
        if paragraph[0].lstrip().startswith(">>>"):
            made += [*paragraph, ""]
            continue
        text, sections = _parted(paragraph)
        if text:
            made += [escaped("\n".join(text)), ""]
        for name, body in sections:
            made += _field(name, body)
        if sections:
            made.append("")
    return "\n".join(made).split("\n")


def _paragraphs(lines: Sequence[str]) -> Iterator[list[str]]:
    """Lines between empty ones, of which a doctest is one."""
    found: list[str] = []
    for line in [*lines, ""]:
        if found and (not line.strip() or (line.startswith(">>>") and not found[0].startswith(">>>"))):
            yield found
            found = []
        if line.strip():
            found.append(line)


def _parted(paragraph: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The text of a paragraph, and its sections: each from its word to the next one's."""
    text: list[str] = []
    sections: list[tuple[str, list[str]]] = []
    for line in [part for whole in paragraph for part in _INLINE.split(whole)]:
        if begins := _BEGINS.fullmatch(line.strip() if sections or not line.startswith(" ") else ""):
            sections.append((begins[1], [begins[2]] if begins[2] else []))
        elif sections:
            sections[-1][1].append(line)
        else:
            text.append(line)
    return text, sections


def _field(name: str, body: Sequence[str]) -> list[str]:
    entries: list[str] = []
    if name == "Args":
        least = min((len(line) - len(line.lstrip()) for line in body if line.startswith(" ")), default=0)
        for line in body:
            indent = len(line) - len(line.lstrip())
            if (entry := _ENTRY.fullmatch(line.strip())) and indent in (0, least):
                entries.append(f"* **{entry[1]}**: {escaped(entry[2])}")
            else:
                entries.append(f"  {escaped(line.strip())}" if entries else escaped(line.strip()))
        return [":Args:", *(f"    {line}" for line in entries)]
    words = " ".join(line.strip() for line in body)
    return [f":{name}: {escaped(words)}"]


def escaped(text: str) -> str:
    """Prose as reStructuredText has it: `code` as literals, *emphasis* as it is, other marks behind a backslash.

    >>> escaped("`a_` of x_ and *b*, (b, *shape)")
    '``a_`` of x\\\\_ and *b*, (b, \\\\*shape)'
    """
    made, at = [], 0
    for literal in _LITERAL.finditer(text):
        made += [_plain(text[at : literal.start()]), f"``{literal[1] or literal[2]}``"]
        at = literal.end()
    return "".join([*made, _plain(text[at:])])


def _plain(text: str) -> str:
    kept = _EMPHASIS.sub("\0\\1\0", text)
    marked = re.sub(r"[\\|*`]|_(?!\w)", lambda found: f"\\{found[0]}", kept)
    return marked.replace("\0", "*")
