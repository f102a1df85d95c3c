"""Streams of random numbers: a seed is a whole number from 0 to 2**64 - 1, and each is a stream of its own."""

from __future__ import annotations

import operator

import numpy as np


def seed_checked(seed: int) -> int:
    """The seed as an int. Raises: TypeError for what is no whole number, ValueError for one that is no seed."""
    try:
        number = operator.index(seed)
    except TypeError:
        raise TypeError(f"a seed is a whole number from 0 to 2^64-1, got {seed!r}") from None
    if not 0 <= number < 2**64:
        shown = number if abs(number) < 10**30 else f"one of {number.bit_length()} bits"
        raise ValueError(f"a seed is a whole number from 0 to 2^64-1, got {shown}")
    return number


def generator(seed: int, number: int) -> np.random.Generator:
    """Stream `number` (below 2**64) of a seed.

    A list as key would become floats from 2**63 on, and different seeds the same key.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed_checked(seed), number], np.uint64)))


def sequence(seed: int, *numbers: int) -> np.random.SeedSequence:
    """A source of keys for up to two numbers below 2**32.

    SeedSequence strings the 32-bit words of what it is given together, so a seed of two words would be taken for a seed and a
    number; its upper word goes last, where none is the same as zero.
    """
    low, high = seed_checked(seed) % 2**32, seed_checked(seed) >> 32
    return np.random.SeedSequence([low, *numbers, high])
