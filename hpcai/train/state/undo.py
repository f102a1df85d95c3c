"""A copy of the state that a step changes before it is decided, the memory of reducers, so that the step can be repeated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hpcai.strategies.strategy import Kept
from hpcai.xp import Array


@dataclass
class Undo:
    """The state before step `step`. The arrays are reused from step to step."""

    step: int = -1
    _before: list[tuple[Array | None, Any]] = field(default_factory=list)

    def remember(self, step: int, kept: list[Kept]) -> None:
        """Copy the state with which step `step` begins."""
        early = [one for one in kept if one.early]
        last = self._before if len(self._before) == len(early) else [(None, None)] * len(early)
        self._before = [(_copied(one.array, into), one.counter) for one, (into, _) in zip(early, last, strict=True)]
        self.step = step

    def take_back(self, step: int, kept: list[Kept]) -> None:
        """Restore the state with which step `step` began, if it was copied, so that the step can be repeated."""
        if self.step != step:
            return
        for one, (array, counter) in zip([one for one in kept if one.early], self._before, strict=True):
            if one.array is not None:
                one.array[...] = array
            elif one.put is not None:
                one.put(counter)


def _copied(array: Array | None, into: Array | None) -> Array | None:
    if array is None or into is None or into.shape != array.shape:
        return None if array is None else array.copy()
    into[...] = array
    return into
