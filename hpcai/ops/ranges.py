"""Checks of hyper-parameters, given by name: training with a value out of range would run, but badly."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np

Maker = Callable[..., Any]


def below_one(maker: Maker, **values: float) -> None:
    """Raise ValueError unless all are from 0 to below 1."""
    _within(maker, values, lambda value: 0 <= value < 1, "from 0 to below 1")


def not_negative(maker: Maker, **values: float) -> None:
    """Raise ValueError unless all are finite and at least 0."""
    _within(maker, values, lambda value: 0 <= value < inf, "finite and not negative")


def up_to_infinity(maker: Maker, **values: float) -> None:
    """Raise ValueError unless all are at least 0; infinity is allowed."""
    _within(maker, values, lambda value: value >= 0, "of at least 0")


def positive(maker: Maker, **values: float) -> None:
    """Raise ValueError unless all are finite and above 0."""
    _within(maker, values, lambda value: 0 < value < inf, "finite and above 0")


def counts(maker: Maker, least: int, **values: int) -> None:
    """Raise ValueError unless all are whole numbers of at least `least`."""
    _within(maker, values, lambda value: value >= least and value == int(value), f"a whole number of at least {least}")


def share(maker: Maker, **values: float) -> None:
    """Raise ValueError unless all are above 0 and up to 1."""
    _within(maker, values, lambda value: 0 < value <= 1, "above 0 and up to 1")


def _within(maker: Maker, values: dict[str, Any], good: Callable[[Any], bool], words: str) -> None:
    for name, value in values.items():
        try:
            fine = not isinstance(value, (bool, np.bool_)) and bool(good(value))  # NaN is in no range
        except (TypeError, ValueError, OverflowError):  # text, an array or an infinite count
            fine = False
        if not fine:
            raise ValueError(f"{maker.__name__} wants {name} {words}, got {shown(value)}")


def shown(value: Any) -> str:
    """Return a value as text on one line, of at most 60 characters."""
    said = " ".join(repr(value).split())
    return said if len(said) <= 60 else f"{said[:57]}..."
