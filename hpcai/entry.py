"""Rows of tables of what an option can name. The option's choices, defaults, checks and --help, and the docs' tables use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


def _nothing(options: Any, axes: Any) -> str:
    return ""


class Entry(NamedTuple):
    """Something that an option can name, as one row of a table.

    Args:   about: what it is, in a few words.
            make: the function that makes it; the table says its arguments.
            options: the names of the options that affect it, each with its default here.
            refuses: refuses(options, axes) gives the reason why it is incompatible with these options, on a mesh of these axes
                (None while the mesh is not known), or "".
            source: the paper, if there is one.
    """

    about: str
    make: Callable[..., Any]
    options: Mapping[str, Any] = {}
    refuses: Callable[[Any, Any], str] = _nothing
    source: str = ""


def defaults(table: Mapping[str, Entry], option: str) -> str:
    """The defaults of one option, in words, by entry; entries that do not have the option are left out.

    >>> defaults({"a": Entry("", int, {"lr": 0.1}), "b": Entry("", int, {"lr": 0.1}), "c": Entry("", int, {"lr": 1})}, "lr")
    'a, b 0.1; c 1'
    """
    by_value: dict[Any, list[str]] = {}
    for name, entry in table.items():
        if option in entry.options:
            by_value.setdefault(entry.options[option], []).append(name)
    return "; ".join(f"{', '.join(names)} {value:g}" for value, names in by_value.items())


def values(entry: Entry, options: Any) -> dict[str, Any]:
    """The values of an entry's options: as given, else the entry's defaults."""
    given = {name: getattr(options, name) for name in entry.options}
    return {name: default if given[name] is None else given[name] for name, default in entry.options.items()}
