"""Stragglers: the rank for which the others waited in the steps of a run, and the time that this cost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from hpcai.comm.communicator import Communicator

WORTH_SAYING = 0.05
"""A cost below this share of the steps' time is not shown in the final table."""


class Waiting:
    """The time that this rank waited in all steps so far except the first, which compiles kernels."""

    def __init__(self, comm: Communicator):
        self.comm = comm
        self.steps, self.waited_s, self.spent_s = 0, 0.0, 0.0
        self.summary: dict[str, Any] | None = None

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Measure the step that runs within this context."""
        waited, begin = self._waited_s(), perf_counter()
        yield
        if self.steps:
            self.waited_s += self._waited_s() - waited
            self.spent_s += perf_counter() - begin
        self.steps += 1

    def _waited_s(self) -> float:
        """Return the seconds that this rank has waited on all communicators of the run."""
        return sum(one.waited_s for one in self.comm.family)

    def settle(self) -> None:
        """Compare the ranks and set `summary`; it stays None with one rank or only one step. Collective."""
        found = self.comm.allgather_object((self.waited_s, self.spent_s))
        if self.comm.size > 1 and all(spent for _, spent in found):
            self.summary = summarised([waited for waited, _ in found], max(spent for _, spent in found))


def summarised(waited_s: list[float], spent_s: float) -> dict[str, Any]:
    """Summarise which rank was late. The rank that waited least is the rank for which the others waited. Time that all ranks
    waited equally does not count.

    >>> summarised([3.0, 1.0, 3.5], 20.0)
    {'waited_s': [3.0, 1.0, 3.5], 'late_rank': 1, 'cost_s': 2.25, 'share': 0.1125}
    """
    least = min(waited_s)
    late = waited_s.index(least)
    cost_s = (sum(waited_s) - least) / (len(waited_s) - 1) - least
    return {"waited_s": waited_s, "late_rank": late, "cost_s": cost_s, "share": cost_s / spent_s}


def row(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a row for the final table; an empty list if waiting cost less than WORTH_SAYING."""
    said = summary.get("waiting")
    if said is None or said["share"] < WORTH_SAYING:
        return []
    cost = f"{said['cost_s']:.1f} s ({said['share']:.0%} of the steps' time)"
    return [("waiting", f"ranks waited {cost} for rank {said['late_rank']}")]
