"""Stragglers: which rank the others waited for in the steps of a run, and how much time that cost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from hpcai.comm.communicator import Communicator

WORTH_SAYING = 0.05
"""A cost below this share of the steps' time is not shown in the final table."""


class Waiting:
    """The time that this rank waited in the steps so far, without the first, in which kernels are compiled."""

    def __init__(self, comm: Communicator):
        self.comm = comm
        self.steps, self.waited_s, self.spent_s = 0, 0.0, 0.0
        self.summary: dict[str, Any] | None = None

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Around a step."""
        waited, begin = self._waited_s(), perf_counter()
        yield
        if self.steps:
            self.waited_s += self._waited_s() - waited
            self.spent_s += perf_counter() - begin
        self.steps += 1

    def _waited_s(self) -> float:
        """On all communicators of the run."""
        return sum(one.waited_s for one in self.comm.family)

    def settle(self) -> None:
        """Compare the ranks; `summary` is there afterwards, unless there is one rank or one step. Collective."""
        found = self.comm.allgather_object((self.waited_s, self.spent_s))
        if self.comm.size > 1 and all(spent for _, spent in found):
            self.summary = summarised([waited for waited, _ in found], max(spent for _, spent in found))


def summarised(waited_s: list[float], spent_s: float) -> dict[str, Any]:
    """Summarise which ranks were late. The rank that waited least is the one that the others waited for; time that all ranks wait
    alike is nobody's fault.

    >>> summarised([3.0, 1.0, 3.5], 20.0)
    {'waited_s': [3.0, 1.0, 3.5], 'late_rank': 1, 'cost_s': 2.25, 'share': 0.1125}
    """
    least = min(waited_s)
    late = waited_s.index(least)
    cost_s = (sum(waited_s) - least) / (len(waited_s) - 1) - least
    return {"waited_s": waited_s, "late_rank": late, "cost_s": cost_s, "share": cost_s / spent_s}


def row(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a row of the final table, if the waits are worth one."""
    said = summary.get("waiting")
    if said is None or said["share"] < WORTH_SAYING:
        return []
    cost = f"{said['cost_s']:.1f} s ({said['share']:.0%} of the steps' time)"
    return [("waiting", f"ranks waited {cost} for rank {said['late_rank']}")]
