"""The names of models, data and optimizers of one's own: package.module:function or file.py:function, or, of what has no such
name, a text for people that carries the object.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcai.errors import UsageError

NAME = re.compile(r"(?P<place>[A-Za-z_][\w.]*|[^:]*\.py):(?P<function>[A-Za-z_]\w*)")
_KINDS = ("csv", "npz", "text")
"""What stands before a colon in --data without being a module."""


class Own(str):
    """The name of something of one's own, and what it names. Another process gets the name alone, as JSON does."""

    __slots__ = ("value",)
    value: Any

    def __new__(cls, name: str, value: Any) -> Own:
        """name: as it is written on a command line, or, of what has no such name, for people."""
        made = super().__new__(cls, name)
        made.value = value
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def is_own(name: str) -> bool:
    """Return whether the value is the user's own object, not a name that hpcai knows."""
    return isinstance(name, Own) or is_name(name)


def is_name(name: str) -> bool:
    """Return whether the value has the form package.module:function or file.py:function.

    >>> is_name("mine:model"), is_name("work/mine.py:model"), is_name("csv:table"), is_name("mlp")
    (True, True, False, False)
    """
    found = NAME.fullmatch(name)
    return found is not None and found["place"] not in _KINDS


def called(name: str) -> str:
    """The last part of a name, for a folder.

    >>> called("package.mine:model"), called("csv:data/table.csv.gz"), called("mlp")
    ('model', 'table', 'mlp')
    """
    return Path(name.split(":")[-1]).name.split(".")[0]


def wrapped(value: Any, kind: str) -> str:
    """Return a Python value as an option: a text as it is; a function under its name, if it has one; any other object under a
    name for display.
    """
    if isinstance(value, str):
        return value
    name = _name_of(value) if inspect.isfunction(value) else ""
    return Own(name or f"own-{kind}", value)


def _name_of(function: Callable[..., Any]) -> str:
    """Return the name by which another process finds the function; empty if there is none."""
    if not function.__qualname__.isidentifier():  # within a function, a class, or a lambda
        return ""
    if function.__module__ != "__main__":
        return f"{function.__module__}:{function.__qualname__}"
    main = sys.modules["__main__"]
    if spec := getattr(main, "__spec__", None):
        return f"{spec.name}:{function.__qualname__}"
    file = getattr(main, "__file__", None) or ""
    return f"{Path(file).absolute()}:{function.__qualname__}" if file.endswith(".py") else ""


def require_names(kinds: dict[str, str]) -> None:
    """Raise UsageError for what ranks that are started later could not find. kinds: values of options by their flags."""
    for flag, name in kinds.items():
        if isinstance(name, Own) and not is_name(name):
            raise UsageError(
                f"--elastic grow starts ranks that must make the {flag.strip('-')} too; give a function at the top of a module, "
                f"or its name: {flag} package.module:function"
            )
