"""Numbers as people write them in tables, and whether f64 holds them."""

from __future__ import annotations

import re
from decimal import Decimal

_DIGITS = 1000
"""The limit for digits of a whole number; Python itself reads up to 4,300."""

WHOLE = re.compile(r"\s*[+-]?[0-9]+\s*")


def is_number(cell: str) -> bool:
    """Return whether a cell is a number in ASCII, as people write it; `1_2`, which Python accepts, is not."""
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii() and "_" not in cell


def whole(cell: str) -> int | None:
    """Return the whole number in a cell, in any spelling, exactly, not rounded to f64; None if there is none or it is very long.

    >>> whole("9007199254740993.0"), whole("9.007199254740993e15"), whole("0.5"), whole("1e5000")
    (9007199254740993, 9007199254740993, None, None)
    """
    if len(cell) > _DIGITS or not is_number(cell):
        return None
    exact = Decimal(cell.strip())
    if not exact.is_finite() or exact.adjusted() >= _DIGITS or exact != (found := int(exact)):
        return None
    return found


def is_spelt(cell: str, number: float) -> bool:
    """Return whether a cell spells the f64 that is read from it: a whole number exactly, another number to as many digits.

    >>> is_spelt("6.02e23", 6.02e23), is_spelt("9007199254740993.0", 9007199254740992.0)
    (True, False)
    """
    if WHOLE.fullmatch(cell):
        return whole(cell) == int(number)
    if len(cell) > _DIGITS:
        return False
    said = Decimal(cell.strip())
    return said in (Decimal(repr(float(number))), Decimal(f"{number:.{len(said.as_tuple().digits) - 1}e}"))
