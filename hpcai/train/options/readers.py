"""Readers of options: the type and bounds of each option, the same for the command line, variables and files.

A reader turns a text, or a list or mapping from a file, into a value. It also accepts its own values, and raises ValueError for
all else. Its docstring says, in error messages, which values it accepts. Digits are 0 to 9, without underscores or leading zeros,
since other programs read these differently.
"""

from __future__ import annotations

import math
import re
import signal
import unicodedata
from collections.abc import Callable
from typing import Any

from hpcai.errors import meant
from hpcai.train.options import own_name

Reader = Callable[[Any], Any]

MOST = 2**53
"""The default upper bound of whole numbers, as in JSON."""

MOST_F32 = 3e38
"""The upper bound of numbers that become f32."""

LONGEST_TEXT, MOST_NAMES = 4096, 1000

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,30})")
_NUMBER = re.compile(r"[-+]?([0-9]{1,400}(\.[0-9]{0,400})?|\.[0-9]{1,400})([eE][-+]?[0-9]{1,5})?")
_ON, _OFF = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class NoChoice(ValueError):
    """The error for a word that is not among the choices; its text suggests a choice."""


def _saying(wanted: str, read: Reader) -> Reader:
    read.__doc__ = wanted
    return read


def whole(least: int = 0, most: int = MOST) -> Reader:
    """Return a reader of a whole number within bounds, both included.

    >>> whole(1)("128")
    128
    """
    upto = "" if most == MOST else f" to {most:,}"

    def read(value: Any) -> int:
        text = value.strip(" ") if isinstance(value, str) else str(value) if type(value) is int else ""
        if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    return _saying(f"a whole number from {least}{upto}", read)


def number(
    least: float = -math.inf, most: float = math.inf, above: float = -math.inf, below: float = math.inf, what: str = "a number"
) -> Reader:
    """Return a reader of a finite number within bounds: from `least` to `most`, greater than `above`, less than `below`."""
    bounds = ((least, "from"), (above, "above"), (most, "to"), (below, "below"))
    said = " ".join(f"{word} {bound:g}" for bound, word in bounds if math.isfinite(bound))

    def read(value: Any) -> float:
        text = value.strip(" ") if isinstance(value, str) else repr(value) if type(value) in (int, float) else ""
        found = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not (least <= found <= most and above < found < below):  # never true of NaN, nor of an infinity
            raise ValueError
        return found

    return _saying(f"{what} {said}".strip(), read)


def choice(*words: str) -> Reader:
    """Return a reader of one of these words. YAML's no means "never" and yes means "always", if these are among the words."""
    switched = dict.fromkeys(_OFF[:3], "never") | dict.fromkeys(_ON[:3], "always")

    def read(value: Any) -> str:
        word = switched.get(str(value).lower(), value)
        if value in words:
            return str(value)
        if word not in words:
            raise NoChoice(meant(str(value), words))
        return str(word)

    return _saying(f"one of {', '.join(words)}", read)


def choice_or_own(*words: str) -> Reader:
    """Return a reader of one of some words, or of the name of a user's own function."""
    of_words = choice(*words)

    def read(value: Any) -> str:
        return str(value) if isinstance(value, str) and own_name.is_own(value) else str(of_words(value))

    return _saying(f"{of_words.__doc__}, or package.module:function", read)


def flag(value: Any) -> bool:
    """true or false (or yes and no, on and off, 1 and 0)"""
    word = str(value).lower().strip(" ") if isinstance(value, (str, bool)) else ""
    if word not in (*_ON, *_OFF):
        raise ValueError
    return word in _ON


def text(value: Any) -> str:
    """a text of one line, without control characters"""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_TEXT:
        raise ValueError
    if any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in value):
        raise ValueError
    return value


def text_or_nothing(value: Any) -> str:
    """a text of one line, without control characters"""
    return "" if value == "" else text(value)


def resumed(value: Any) -> str:
    """never, auto, or the path or URL of a checkpoint"""
    return "never" if str(value).lower() in _OFF[:3] else text(value)


def widths(value: Any) -> tuple[int, ...]:
    """whole numbers above 0, such as 1024,1024"""
    return tuple(whole(1, 1 << 24)(part) for part in _parts(value) if part != "")


def names(value: Any) -> tuple[str, ...]:
    """names separated by commas, or a list of them"""
    parts = (part.strip() if isinstance(part, str) else part for part in _parts(value))
    return tuple(text(part) for part in parts if part != "")


def patterns(value: Any) -> tuple[tuple[str, str], ...]:
    """pattern=choice pairs separated by commas, or a mapping of patterns to choices"""
    pairs = list(value.items()) if isinstance(value, dict) else [_pair(part) for part in _parts(value) if part != ""]
    if len(pairs) > MOST_NAMES or any(len(pair) != 2 for pair in pairs):
        raise ValueError
    return tuple((text(pattern).strip(), text(kind).strip()) for pattern, kind in pairs)


def _pair(part: Any) -> list[Any]:
    return part.split("=") if isinstance(part, str) else list(part) if isinstance(part, (list, tuple)) else []


def class_weights(value: Any) -> str | tuple[float, ...] | tuple[tuple[str, float], ...]:
    """balanced, NAME=W,NAME=W,... or W,W,..., where weights are numbers from 0 and not all are 0"""
    if isinstance(value, str) and value.strip() == "balanced":
        return "balanced"
    parts = _parts([[key, one] for key, one in value.items()] if isinstance(value, dict) else _plain(value))
    pairs = [part.rsplit("=", 1) if isinstance(part, str) and "=" in part else _plain(part) for part in parts]
    named = [isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs]
    weights = [_weight(pair[-1] if with_name else pair) for pair, with_name in zip(pairs, named, strict=True)]
    if not any(weights) or any(named) != all(named):
        raise ValueError
    if not any(named):
        return tuple(weights)
    labels = [text(str(pair[0]).strip()) for pair in pairs]
    if len(set(labels)) < len(labels):
        raise ValueError
    return tuple(zip(labels, weights, strict=True))


_weight = number(least=0, most=MOST_F32)


def _plain(value: Any) -> Any:
    """Return numpy arrays and numbers as Python values, and other values as they are."""
    return value.tolist() if hasattr(value, "tolist") else value


def signal_names(value: Any) -> tuple[str, ...]:
    """names of signals separated by commas, as in USR1,TERM, or none"""
    given = tuple(name.upper().removeprefix("SIG") for name in names(value))
    return () if given == ("NONE",) else given


def _parts(value: Any) -> list[Any]:
    """Return the parts of a list, or of a text separated by commas."""
    parts = value.strip(" []").split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or len(parts) > MOST_NAMES:
        raise ValueError
    return list(parts)


def known_signals() -> list[str]:
    """Return the names of all signals of this system without SIG, as in USR1."""
    return sorted(one.name.removeprefix("SIG") for one in signal.valid_signals() if isinstance(one, signal.Signals))
