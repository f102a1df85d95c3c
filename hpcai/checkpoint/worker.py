"""A thread that carries out what would keep the steps waiting: the writing of checkpoints."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any


class Task:
    """A function that a thread carries out, which ends with the process."""

    def __init__(self, function: Callable[[], Any], then: Callable[[Task], None] = lambda work: None):
        self.result: Any = None
        self.failure, self.function, self.then = "", function, then
        self._over = threading.Event()

    @classmethod
    def none(cls) -> Task:
        """Nothing to do."""
        made = cls(lambda: None)
        made.carry_out()
        return made

    @property
    def done(self) -> bool:
        """Return whether the task has ended."""
        return self._over.is_set()

    def wait(self) -> str:
        """Return when it is done: why it failed, or nothing."""
        self._over.wait()
        return self.failure

    def carry_out(self) -> None:
        """In the thread."""
        try:
            self.result = self.function()
        except BaseException as error:  # told to all ranks in the next exchange
            self.failure = " ".join(str(error).split()) or type(error).__name__
        self.then(self)
        del self.function, self.then
        self._over.set()


class Worker:
    """Carries out one work after another, until nobody has it any more: to start one costs the steps more than to wake it."""

    def __init__(self) -> None:
        self._works: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        threading.Thread(target=_carry_out_all, args=(self._works,), daemon=True, name="hpcai checkpoint").start()
        weakref.finalize(self, self._works.put, None)

    def begin(self, work: Task) -> Task:
        """Have it carried out."""
        self._works.put(work)
        return work


def _carry_out_all(works: queue.SimpleQueue[Task | None]) -> None:
    while (work := works.get()) is not None:
        work.carry_out()
        del work
