"""Parts that the parsers of several commands share: messages of one line, and whole numbers within bounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hpcai.errors import UsageError, meant
from hpcai.train.options import readers

LONGEST_SHOWN, LONGEST_MESSAGE = 80, 1000


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError for an unknown option or a wrong value, instead of ending the program."""

    def __init__(self, prog: str, description: str | None):
        super().__init__(
            prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def parse_args(self, args=None, namespace=None):
        """Return the values of options. The error for unknown options suggests a name for the first one."""
        found, others = self.parse_known_args(args, namespace)
        if others:
            self.error(f"unrecognized arguments: {shown_all(others)}{self.meant(others[0])}")
        return found

    def meant(self, argument: str) -> str:
        """Return a suggestion of the option that an unknown argument may mean, to be appended to an error message."""
        names = [flag.removeprefix("--") for flag in self._option_string_actions if flag.startswith("--")]
        names = [name for name in names if self._option_string_actions[f"--{name}"].help != argparse.SUPPRESS]
        return meant(argument.lstrip("-").partition("=")[0], names).replace("(is ", "(is --")

    def error(self, message: str) -> NoReturn:
        """Raise argparse's error message as a UsageError of one line."""
        raise refusal(self.prog, message)


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return an argparse type for a whole number from `least` to `most`."""
    reader = readers.whole(least, most)

    def read(text: str) -> int:
        try:
            return reader(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"wants {reader.__doc__}, got {shown(text)}") from None

    return read


def refusal(prog: str, message: str) -> UsageError:
    """Return a UsageError whose message is one printable line."""
    said = "".join(one if one.isprintable() else " " for one in message)
    return UsageError(f"{' '.join(said.split())[:LONGEST_MESSAGE]} (python -m {prog} --help lists the options)")


def shown_all(words: Sequence[str]) -> str:
    """Return the values as they were given, shortened."""
    said = " ".join(words)
    return said if len(said) <= LONGEST_MESSAGE // 2 else f"{said[: LONGEST_MESSAGE // 2]}..."


def shown(value: Any) -> str:
    """Return the value as it was given, on one line and shortened."""
    said = repr(value) if isinstance(value, str) else str(value)
    return said if len(said) <= LONGEST_SHOWN else f"{said[: LONGEST_SHOWN - 20]}... ({len(said):,} characters)"
