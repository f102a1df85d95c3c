"""How long ranks wait for each other, and what is said when one does not come."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hpcai.errors import StallError

TIMEOUT_S = 300.0
"""How long a rank waits for the others; $HPCAI_TIMEOUT_S overrides it."""


def timeout_s() -> float:
    """The time limit of a wait in seconds."""
    return float(os.environ.get("HPCAI_TIMEOUT_S") or TIMEOUT_S)


def error(rank: int, waited_s: float, what: str, missing: Sequence[int]) -> StallError:
    """The error of a rank that waited in vain."""
    whom = f"rank(s) {', '.join(map(str, missing))}, which did not come" if missing else "a message, though all ranks wait"
    return StallError(
        f"rank {rank} waited {waited_s:g} s in {what} for {whom}; look there for the reason, or raise $HPCAI_TIMEOUT_S "
        "if they are only slow"
    )
