"""A thread that writes checkpoints, so that training steps do not wait for the writing."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any


class Task:
    """A function that a daemon thread carries out. then: called with the task at its end, before it counts as done."""

    def __init__(self, function: Callable[[], Any], then: Callable[[Task], None] = lambda work: None):
        self.result: Any = None
        self.failure, self.function, self.then = "", function, then
        self._over = threading.Event()

    @classmethod
    def none(cls) -> Task:
        """Return a task that is done."""
        made = cls(lambda: None)
        made.carry_out()
        return made

    @property
    def done(self) -> bool:
        """Return whether the task has ended."""
        return self._over.is_set()

    def wait(self) -> str:
        """Wait until the task is done; return the reason of its failure, empty if it did not fail."""
        self._over.wait()
        return self.failure

    def carry_out(self) -> None:
        """Run the function, in the thread; keep its result, or its error's text in `failure`."""
        try:
            self.result = self.function()
        except BaseException as error:  # the next exchange tells all ranks
            self.failure = " ".join(str(error).split()) or type(error).__name__
        self.then(self)
        del self.function, self.then
        self._over.set()


class Worker:
    """A thread that carries out one task after another, until the Worker is deleted. It exists because waking a thread delays
    training steps less than starting a thread.
    """

    def __init__(self) -> None:
        self._works: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        threading.Thread(target=_carry_out_all, args=(self._works,), daemon=True, name="hpcai checkpoint").start()
        weakref.finalize(self, self._works.put, None)

    def begin(self, work: Task) -> Task:
        """Queue a task for the thread, and return it."""
        self._works.put(work)
        return work


def _carry_out_all(works: queue.SimpleQueue[Task | None]) -> None:
    while (work := works.get()) is not None:
        work.carry_out()
        del work
