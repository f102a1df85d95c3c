"""What the fuzzer knows of a kind of input."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """One kind of input.

    make:    writes a damaged or odd input into an empty folder and says in a few words what it is.
    attempt: does with it what a user's command would; returns a value that says what came of it, or raises what refuses it.
    prepare: done once before all, with a folder of its own.
    truth:   the same value found in another way, which code of hpcai had no part in reading; None where nothing is known.
    """

    make: Callable[[random.Random, Path], str]
    attempt: Callable[[Path], Any]
    truth: Callable[[Path], Any]
    prepare: Callable[[Path], None] = lambda folder: None
