"""Faults that were looked at and change nothing that a test could see, each with the reason."""

from __future__ import annotations

from tests.mutants.operators import Fault

CHANGES_NOTHING: dict[tuple[str, str, str], str] = {}
"""(file, line's text, what it becomes) -> why nothing differs."""


def reason(fault: Fault) -> str | None:
    """Why this fault changes nothing; None if it is not known to."""
    return CHANGES_NOTHING.get((fault.file, fault.before, fault.after))
