"""HPCAI_ variables: what each may be, checked when a program starts, and those that nothing reads, named.

Where a variable is read its value may be relied on. One that is empty is as one that
is not set; of an option it is refused (see train/options/given.py).
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hpcai.errors import UsageError

PREFIX = "HPCAI_"

MOST_S = 1e7
"""The longest time limit: a third of a year."""

ALGORITHMS = ("auto", "node", "hierarchical", "ring", "halving_doubling", "mpi")
"""Ways of an all-reduce."""

LANES = ("v3", "none")
"""Vectors of older processors, and none: what a program may ask the kernels for."""


class Variable(NamedTuple):
    """fine(value): whether the value is valid. wanted: the valid values in words, for messages."""

    fine: Callable[[str], bool]
    wanted: str


def _one_of(*values: str) -> Variable:
    return Variable(lambda text: text in values, f"{', '.join(values[:-1])} or {values[-1]}" if values[1:] else values[0])


def _count(least: int) -> Variable:
    return Variable(lambda text: text.isascii() and text.isdigit() and int(text) >= least, f"a whole number from {least}")


def _is_limit(text: str) -> bool:
    try:
        return limit_fits(float(text))
    except ValueError:
        return False


def limit_fits(seconds: float) -> bool:
    """Whether a time limit is valid: above 0 and at most MOST_S."""
    return 0 < seconds <= MOST_S  # not so for NaN


LIMIT_WORDS = f"a number of seconds above 0, {MOST_S:.0f} at most"

_TEXT = Variable(lambda text: "\0" not in text, "a text")

VARIABLES: dict[str, Variable] = {
    "ALGORITHM": _one_of(*ALGORITHMS),
    "CACHE": _TEXT,
    "DATA": _TEXT,
    "KERNELS": _one_of("required"),
    "LANES": _one_of(*LANES),
    "LAUNCHER": _one_of("auto", "srun-pmix", "srun-pmi2", "mpirun"),
    "LAUNCHER_OPTIONS": _TEXT,
    "NODE": _one_of("0", "1"),
    "RANKS_PER_NODE": _count(1),
    "REACH": _one_of("0", "1"),
    "SITE": _TEXT,
    "STAGED_BYTES": _count(0),
    "TIMEOUT_S": Variable(_is_limit, LIMIT_WORDS),
    # Of the project's own tests.
    "ALL": _TEXT,
    "FUZZ": _count(1),
    "FUZZ_SEED": _count(0),
    "SHARE": _count(1),
    "SHARE_SEED": _TEXT,
    "TORTURE": _count(1),
    "TORTURE_SEED": _count(0),
}
"""All but the options of hpcai.train, which may be given as variables too (HPCAI_LR)."""


def check(environment: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError, one line, if a variable of VARIABLES has an invalid value."""
    for name in VARIABLES:
        value_of(name, environment)


def value_of(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """The value of a variable of VARIABLES, "" if it is not set. Raises: UsageError if it is invalid."""
    value, (fine, wanted) = environment.get(PREFIX + name, ""), VARIABLES[name]
    if value and not fine(value):
        raise UsageError(f"{PREFIX}{name} is {value!r}; wanted: {wanted}")
    return value


def unknown(environment: Mapping[str, str] = os.environ) -> str:
    """One line that names the HPCAI_ variables that nothing reads, with the nearest known names; empty if there are none.

    >>> unknown({"HPCAI_TIMEOUTS": "3", "HPCAI_LR": "0.1"})
    'nothing reads HPCAI_TIMEOUTS (HPCAI_TIMEOUT_S?)'
    """
    known = [PREFIX + name for name in VARIABLES]
    strange = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    if strange:
        known += [PREFIX + name.upper() for name in _options()]
        strange = [name for name in strange if name not in known]
    meant = {name: difflib.get_close_matches(name, known, 1) for name in strange}
    shown = [f"{name} ({near[0]}?)" if near else name for name, near in meant.items()]
    return f"nothing reads {', '.join(shown)}" if shown else ""


def _options() -> list[str]:
    """Names of the options of hpcai.train. The import happens here alone, and only for variables not in VARIABLES."""
    options: Any = importlib.import_module("hpcai.train.options.options")
    return [*options.Options.__dataclass_fields__, *options.RENAMED, "config"]


@functools.cache
def say_unknown(program: str) -> None:
    """Print `unknown()`, if it names any, on stderr, once a process."""
    if text := unknown():
        print(f"{program}: {text}", file=sys.stderr, flush=True)
