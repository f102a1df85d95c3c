"""Streams of random numbers: a seed is a whole number from 0 to 2**64 - 1, and different seeds have different streams."""

from __future__ import annotations

import operator

import numpy as np


def seed_checked(seed: int) -> int:
    """Return the seed as an int. Raises: TypeError if it is not a whole number, ValueError if it is out of range."""
    try:
        number = operator.index(seed)
    except TypeError:
        raise TypeError(f"a seed is a whole number from 0 to 2^64-1, got {seed!r}") from None
    if not 0 <= number < 2**64:
        shown = number if abs(number) < 10**30 else f"a number of {number.bit_length()} bits"
        raise ValueError(f"a seed is a whole number from 0 to 2^64-1, got {shown}")
    return number


def generator(seed: int, number: int) -> np.random.Generator:
    """Return the generator of stream `number` (below 2**64) of a seed.

    The key is a uint64 array: numpy turns a list with numbers from 2**63 on into floats, so different seeds would get one key.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed_checked(seed), number], np.uint64)))


def sequence(seed: int, *numbers: int) -> np.random.SeedSequence:
    """Return a source of keys for a seed and up to two numbers below 2**32.

    SeedSequence concatenates the 32-bit words of its arguments, so a seed of two words could look like a seed and a number. The
    seed's upper word therefore goes last, where a missing word equals zero.
    """
    low, high = seed_checked(seed) % 2**32, seed_checked(seed) >> 32
    return np.random.SeedSequence([low, *numbers, high])
