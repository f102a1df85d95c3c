"""Rows of tables: what an option names. Its choices, defaults, checks and --help, and the tables of the docs come from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


def _nothing(options: Any, axes: Any) -> str:
    return ""


class Entry(NamedTuple):
    """Something that an option names.

    about: what it is, in a few words; source: the paper, where there is one; make: what makes it (the table says its arguments);
    options: the names of options that act with it, each with the value that it has if it is not given; refuses(options, axes) ->
    why it does not go together with these options, on a mesh of these axes if it is known, or "".
    """

    about: str
    make: Callable[..., Any]
    options: Mapping[str, Any] = {}
    refuses: Callable[[Any, Any], str] = _nothing
    source: str = ""


def defaults(table: Mapping[str, Entry], option: str) -> str:
    """In words, what an option is with each entry if it is not given; entries without it are left out.

    >>> defaults({"a": Entry("", int, {"lr": 0.1}), "b": Entry("", int, {"lr": 0.1}), "c": Entry("", int, {"lr": 1})}, "lr")
    'a, b 0.1; c 1'
    """
    by_value: dict[Any, list[str]] = {}
    for name, entry in table.items():
        if option in entry.options:
            by_value.setdefault(entry.options[option], []).append(name)
    return "; ".join(f"{', '.join(names)} {value:g}" for value, names in by_value.items())


def values(entry: Entry, options: Any) -> dict[str, Any]:
    """The options that act with an entry, as they are given, or as they are if they are not."""
    given = {name: getattr(options, name) for name in entry.options}
    return {name: default if given[name] is None else given[name] for name, default in entry.options.items()}
