"""The names of a user's own models, data and optimizers: package.module:function or file.py:function. An object without such a
name is carried by a text for display (Own).
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
"""Words before the colon of --data that are kinds of data, not modules."""


class Own(str):
    """The name of a user's own object, which carries the object as `value`. Pickle and JSON keep the name alone."""

    __slots__ = ("value",)
    value: Any

    def __new__(cls, name: str, value: Any) -> Own:
        """name: as written on a command line, or a text for display if the object has no such name. value: the object."""
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
    """Return the last part of a name, for the name of a folder.

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
    """Raise UsageError for objects that ranks started later could not find. kinds: values of options by their flags."""
    for flag, name in kinds.items():
        if isinstance(name, Own) and not is_name(name):
            raise UsageError(
                f"--elastic grow starts ranks that must build the {flag.strip('-')} too; give a function at the top level of a "
                f"module, or its name: {flag} package.module:function"
            )
