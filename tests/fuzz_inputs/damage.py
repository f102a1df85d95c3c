"""Ways to damage bytes and text that know nothing of what they mean."""

from __future__ import annotations

import random
from collections.abc import Callable

TOKENS = (
    "", " ", "0", "-1", "1e400", "1e-400", "nan", "inf", "-inf", "NULL", "None", "true", "9007199254740993", "18446744073709551616",
    "1_000", "\uff11\uff12", "0x10", "1,5", "1;5", '"', '""', "'", "\\", "\t", "\n", "\r", "\r\n", "\0", "\ufeff", "\u2028", "\x1b[31m",
    "../..", "/etc/passwd", "=1+1", "$(touch canary)", "`touch canary`", "é", "\U0001f600", "\ud7ff", "%s%n", "{}", "[]", "a" * 5000,
)  # fmt: skip
"""Texts that upset readers: numbers beyond their range, words for nothing, marks of languages."""


def bytes_of(rng: random.Random, raw: bytes) -> bytes:
    """`raw`, damaged one to three times."""
    for _ in range(rng.randint(1, 3)):
        raw = rng.choice(_BYTES)(rng, raw)
    return raw


def text_of(rng: random.Random, text: str) -> str:
    """`text` with tokens put in, taken out or doubled, one to three times."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(text))
        text = rng.choice(
            (
                lambda s, at=at: s[:at] + rng.choice(TOKENS) + s[at:],
                lambda s, at=at: s[:at] + s[at + rng.randint(1, 20) :],
                lambda s, at=at: s[:at] + s[at : at + rng.randint(1, 40)] * rng.choice((2, 3, 50)) + s[at:],
                _swapped_lines,
            )
        )(text)
    return text


def _swapped_lines(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(lines[1:2] + lines[:1] + lines[2:])


def _flip(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw) or 1)
    return raw[:at] + bytes([(raw[at] if raw else 0) ^ (1 << rng.randrange(8))]) + raw[at + 1 :]


def _cut(rng: random.Random, raw: bytes) -> bytes:
    return raw[: rng.randint(0, len(raw))]


def _cut_out(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randint(0, len(raw))
    return raw[:at] + raw[at + rng.randint(1, 64) :]


def _put_in(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randint(0, len(raw))
    return raw[:at] + rng.randbytes(rng.choice((1, 2, 8, 500))) + raw[at:]


def _number(rng: random.Random, raw: bytes) -> bytes:
    """A field of two, four or eight bytes becomes a number at the edge of its range."""
    size = rng.choice((2, 4, 8))
    at = rng.randint(0, max(len(raw) - size, 0))
    value = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)) % 2 ** (8 * size)
    return raw[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + raw[at + size :]


def _twice(rng: random.Random, raw: bytes) -> bytes:
    return raw + raw[rng.randint(0, len(raw)) :]


_BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (_flip, _flip, _cut, _cut_out, _put_in, _number, _number, _twice)
