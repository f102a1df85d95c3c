"""A file of options: YAML of bounded size, depth and number of values, also after its aliases are expanded."""

from __future__ import annotations

import os
import stat
from typing import Any

import yaml

from hpcai.errors import UsageError

MOST_BYTES, MOST_VALUES, MOST_DEPTH = 1 << 16, 2000, 5

_NULL, _STANDARD = "tag:yaml.org,2002:null", "tag:yaml.org,2002:"


def read(path: str) -> dict[str, Any]:
    """Return the file's contents: texts by name, lists and mappings of texts, and None for null. An option's reader decides the
    type of a text: YAML would read `no` as false and 010 as 8.

    Raises: UsageError, one line.
    """
    said = _text(path)
    try:
        _require_bounded(path, said)
        root = yaml.compose(said, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())[:80]
        raise UsageError(f"--config {path} is no YAML{line}: {problem}") from None
    except RecursionError:
        raise UsageError(f"--config {path} is nested too deep") from None
    if root is None:
        raise UsageError(f"--config {path} is empty; it wants options as in `lr: 0.1`, one a line")
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"--config wants a YAML file of options, got one that starts with {said[:40]!r}")
    return _value(path, root)


def _text(path: str) -> str:
    """The content of a regular file, if it is short and UTF-8."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UsageError(f"--config {path} is no regular file; write the options into one")
            with open(handle, "rb", closefd=False) as file:
                content = file.read(MOST_BYTES + 1)
        finally:
            os.close(handle)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror or error}") from None
    if len(content) > MOST_BYTES:
        raise UsageError(f"--config {path} has more than {MOST_BYTES:,} bytes, which no file of options needs")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"--config {path} is not a text in UTF-8") from None


def _require_bounded(path: str, said: str) -> None:
    """Raise UsageError for too many values, counted as if aliases were written out, before anything is made of them."""
    anchored: dict[str, int] = {}
    within: list[list[Any]] = [["", 0]]  # of each collection that is open: its anchor, and the values in it so far
    for event in yaml.parse(said, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            within.append([event.anchor, 1])
        elif isinstance(event, yaml.CollectionEndEvent):
            _count(within, anchored, *within.pop())
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchored:
                raise UsageError(f"--config {path}: the alias *{event.anchor} is of nothing, or within what it stands for")
            _count(within, anchored, None, anchored[event.anchor])
        elif isinstance(event, yaml.ScalarEvent):
            _count(within, anchored, event.anchor, 1)
        if len(within) > MOST_DEPTH + 1:
            raise UsageError(f"--config {path} is nested deeper than {MOST_DEPTH} levels; options are not")
        if sum(values for _, values in within) > MOST_VALUES:
            raise UsageError(f"--config {path} has more than {MOST_VALUES:,} values, which no file of options needs")


def _count(within: list[list[Any]], anchored: dict[str, int], anchor: str | None, values: int) -> None:
    """Count a value that has ended in the open collection."""
    within[-1][1] += values
    if anchor:
        anchored[anchor] = values


def _value(path: str, node: yaml.Node) -> Any:
    """Return a node as text, without YAML's types."""
    if not node.tag.startswith(_STANDARD) or ":python/" in node.tag:
        raise UsageError(f"--config {path} has the tag {node.tag!r}; options are plain values")
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == _NULL else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(path, one) for one in node.value]
    found: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in found:
            what = f"{key.value!r} twice" if isinstance(key, yaml.ScalarNode) else "a name that is no text"
            raise UsageError(f"--config {path} has {what} (line {key.start_mark.line + 1})")
        found[key.value] = _value(path, value)
    return found
