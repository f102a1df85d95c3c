"""The values that flags, environment variables and files give to options, in this order of precedence."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import typing
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from hpcai.errors import UsageError, meant
from hpcai.train.options import optionsfile, readers
from hpcai.train.options.arguments import Parser, refusal, shown
from hpcai.train.options.options import GROUPS, RENAMED
from hpcai.train.options.readers import Reader


def given(kind: type, description: str, arguments: Sequence[str], variables: Mapping[str, str]) -> tuple[dict[str, Any], bool]:
    """Return the values of the given options by name, and whether to print them only (--print_config).

    kind: the dataclass whose fields are the options. variables: values of environment variables by option name.
    Raises: UsageError, one line; SystemExit for --help.
    """
    flags = vars(_parser(kind, description).parse_args(list(arguments)))
    printing, files = flags.pop("print_config"), flags.pop("config")
    flags = _by_new_names(flags, _flag)
    if empty := [name for name, value in variables.items() if not value]:
        raise UsageError(f"${variable(empty[0])} is empty; give it a value or unset it")
    paths = [_path(_flag("config"), path) for path in files or []]
    if not paths and "config" in variables:
        paths = [_path(f"${variable('config')}", variables["config"])]
    found: dict[str, Any] = {}
    for path in paths:
        found |= _from_file(kind, path)
    rest = _by_new_names(
        {name: value for name, value in variables.items() if name != "config"}, lambda name: f"${variable(name)}"
    )
    found |= {name: _read(kind, name, value, f"${variable(name)}") for name, value in rest.items()}
    found |= {name: _read(kind, name, value, _flag(name)) for name, value in flags.items()}
    return found, printing


def _by_new_names(values: Mapping[str, Any], as_written: Callable[[str], str]) -> dict[str, Any]:
    """Return the values with earlier names of options replaced by new names. A line on stderr reports each earlier name."""
    found = dict(values)
    for old in [name for name in values if name in RENAMED]:
        new = RENAMED[old]
        if new in found:
            raise _refusal(f"{as_written(old)} is the earlier name of {as_written(new)}; give one of them, not both")
        print(f"hpcai.train: {as_written(old)} is called {as_written(new)} now", file=sys.stderr, flush=True)
        found[new] = found.pop(old)
    return found


@functools.cache
def readers_of(kind: type) -> dict[str, Reader]:
    """Return each option's reader: the declared reader, else one for the option's type."""
    hints = typing.get_type_hints(kind)
    return {one.name: one.metadata["reader"] or _reader_by_type(hints[one.name]) for one in dataclasses.fields(kind)}


def _reader_by_type(hint: Any) -> Reader:
    kinds = [one for one in (hint, *typing.get_args(hint)) if one is not type(None)]
    words = [word for one in kinds if typing.get_origin(one) is Literal for word in typing.get_args(one)]
    if words:
        return readers.choice(*words)
    by_type = {bool: readers.flag, int: readers.whole(), float: readers.number(), str: readers.text}
    return next(reader for one, reader in by_type.items() if one in kinds)


def variable(name: str) -> str:
    """Return the name of an option's environment variable.

    >>> variable("data_dir")
    'HPCAI_DATA_DIR'
    """
    return f"HPCAI_{name.upper()}"


def _parser(kind: type, description: str) -> Parser:
    """Return a parser that leaves all values as text. Readers read values from any source in the same way."""
    parser = Parser("hpcai.train", description)
    parser.usage = "mpirun -n RANKS python -m hpcai.train [--OPTION VALUE ...]"
    groups = {name: parser.add_argument_group(name, about) for name, about in GROUPS.items()}
    for field in dataclasses.fields(kind):
        reader = readers_of(kind)[field.name]
        of_flags: dict[str, Any] = {"nargs": "?", "const": "true"} if reader is readers.flag else {}
        said = f"{field.metadata['help']}{_in_brackets(reader, field.default)}".replace("%", "%%")
        group = groups[field.metadata["group"]]
        group.add_argument(_flag(field.name), dest=field.name, metavar="X", default=SUPPRESS, help=said, **of_flags)
    for old in RENAMED:
        parser.add_argument(_flag(old), dest=old, default=SUPPRESS, help=SUPPRESS)
    parser.add_argument("--config", action="append", metavar="FILE", help="YAML file of options; of several files the last wins")
    parser.add_argument("--print_config", "--print-config", action="store_true", help="print the options as such a file and end")
    return parser


def _from_file(kind: type, path: str) -> dict[str, Any]:
    """Return the options that a file gives. A null in the file means that the option is not given."""
    found = {}
    values = {key.replace("-", "_"): value for key, value in optionsfile.read(path).items()}
    for name, value in _by_new_names(values, lambda name: f"{name} in {path}").items():
        if name == "config":
            raise UsageError(f"--config {path} names another file of options; give each file with its own --config")
        if name not in readers_of(kind):
            raise _refusal(f"--config {path} has {shown(name)}, which is not an option{meant(name, readers_of(kind))}")
        if value is not None:
            found[name] = _read(kind, name, value, f"{name} in {path}")
    return found


def from_python(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a program gives as Python values, also as path objects and numpy numbers. None means not given.

    Raises: UsageError, one line.
    """
    found = {}
    for name, value in _by_new_names(values, str).items():
        if name not in readers_of(kind):
            raise _refusal(f"there is no option {shown(name)}{meant(name, readers_of(kind))}")
        if value is not None:
            plain = value.item() if isinstance(value, np.generic) else str(value) if isinstance(value, os.PathLike) else value
            found[name] = _read(kind, name, plain, name)
    return found


def _read(kind: type, name: str, value: Any, where: str) -> Any:
    """Return the value of an option as its reader reads it. where: the place of the value, for error messages."""
    reader = readers_of(kind)[name]
    try:
        return reader(value)
    except readers.NoChoice as error:
        raise _refusal(f"{where} wants {reader.__doc__}, got {shown(value)}{error}") from None
    except (ValueError, TypeError):
        raise _refusal(f"{where} wants {reader.__doc__}, got {shown(value)}") from None


def _path(where: str, value: str) -> str:
    try:
        return readers.text(value)
    except ValueError:
        raise _refusal(f"{where} wants a file of options, got {shown(value)}") from None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _in_brackets(reader: Reader, default: Any) -> str:
    """Return, for --help, the accepted numbers or words and the default, in brackets."""
    plain = reader in (readers.flag, readers.text, readers.text_or_nothing, readers.resumed, readers.names, readers.patterns)
    by_itself = (
        ",".join(map(str, default))
        if isinstance(default, tuple)
        else ""
        if default in (None, "") or default is False
        else str(default)
    )
    said = [reader.__doc__ or ""] * (not plain) + [f"default {by_itself}"] * bool(by_itself)
    return f" [{'; '.join(said)}]" if said else ""


def _refusal(message: str) -> UsageError:
    return refusal("hpcai.train", message)
