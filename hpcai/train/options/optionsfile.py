"""A file of options: YAML whose size, depth and number of values are bounded, also after aliases are expanded."""

from __future__ import annotations

import os
import stat
from typing import Any

import yaml

from hpcai.errors import UsageError

MOST_BYTES, MOST_VALUES, MOST_DEPTH = 1 << 16, 2000, 5

_NULL, _STANDARD = "tag:yaml.org,2002:null", "tag:yaml.org,2002:"


def read(path: str) -> dict[str, Any]:
    """Return the file's contents by name: texts, lists and mappings of texts, and None for null. YAML's own types are not used,
    since YAML would read `no` as false and 010 as 8. An option's reader decides the type of a text.

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
        raise UsageError(f"--config {path} is not YAML{line}: {problem}") from None
    except RecursionError:
        raise UsageError(f"--config {path} is nested too deep") from None
    if root is None:
        raise UsageError(f"--config {path} is empty; write one option per line, as in `lr: 0.1`")
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"--config wants a YAML file of options, got one that starts with {said[:40]!r}")
    return _value(path, root)


def _text(path: str) -> str:
    """Return the text of a regular file. Raises: UsageError for another kind of file, a long one, or one that is not UTF-8."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UsageError(f"--config {path} is not a regular file; write the options into a regular file")
            with open(handle, "rb", closefd=False) as file:
                content = file.read(MOST_BYTES + 1)
        finally:
            os.close(handle)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror or error}") from None
    if len(content) > MOST_BYTES:
        raise UsageError(f"--config {path} has more than {MOST_BYTES:,} bytes, the limit for a file of options")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"--config {path} is not UTF-8 text") from None


def _require_bounded(path: str, said: str) -> None:
    """Raise UsageError for too many values or too deep nesting, before any value is built. Aliases count as if written out."""
    anchored: dict[str, int] = {}
    within: list[list[Any]] = [["", 0]]  # for each open collection: its anchor, and the number of values in it so far
    for event in yaml.parse(said, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            within.append([event.anchor, 1])
        elif isinstance(event, yaml.CollectionEndEvent):
            _count(within, anchored, *within.pop())
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchored:
                raise UsageError(f"--config {path}: the alias *{event.anchor} has no anchor, or its value contains it")
            _count(within, anchored, None, anchored[event.anchor])
        elif isinstance(event, yaml.ScalarEvent):
            _count(within, anchored, event.anchor, 1)
        if len(within) > MOST_DEPTH + 1:
            raise UsageError(f"--config {path} is nested deeper than {MOST_DEPTH} levels, the limit for a file of options")
        if sum(values for _, values in within) > MOST_VALUES:
            raise UsageError(f"--config {path} has more than {MOST_VALUES:,} values, the limit for a file of options")


def _count(within: list[list[Any]], anchored: dict[str, int], anchor: str | None, values: int) -> None:
    """Add the size of a completed value to the open collection that contains it."""
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
            what = f"{key.value!r} twice" if isinstance(key, yaml.ScalarNode) else "a name that is not text"
            raise UsageError(f"--config {path} has {what} (line {key.start_mark.line + 1})")
        found[key.value] = _value(path, value)
    return found
