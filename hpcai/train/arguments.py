"""Options of the commands beside hpcai.train: whole numbers within bounds, and complaints of one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from hpcai.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Raises UsageError for options that there are not or that have a wrong value, instead of ending the program."""

    def __init__(self, prog: str, description: str | None):
        super().__init__(
            prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        """What argparse calls with its complaint."""
        raise UsageError(f"{message} (python -m {self.prog} --help lists the options)")


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """How to read a whole number from `least` to `most`, written in the digits 0 to 9."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= 20 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"wants a whole number from {least:,} to {most:,}, got {text!r}")
        return int(text)

    return read
