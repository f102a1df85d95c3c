"""Collectives beside computation: one thread makes them, in the order in which they were given.

While it works the other threads of the rank keep away from communicators, so MPI_THREAD_SERIALIZED is enough, and since
every rank gives its calls in the same order, they meet as they would without threads.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

computing = False
"""True while a thread of this process computes beside its collectives: then waits leave it the core. See mpi.py."""


class Background:
    """Carries out calls one after the other on a thread of its own, which starts with the first call and ends with the process.

    >>> done = []
    >>> background = Background()
    >>> background.start(done.append, 1)
    >>> background.start(done.append, 2)
    >>> background.wait()
    >>> done
    [1, 2]
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
        self._idle = threading.Condition()
        self._pending = 0
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Have `call(*arguments)` made after those that were given before. Its result is dropped."""
        global computing
        computing = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="hpcai background")
            self._thread.start()
        with self._idle:
            self._pending += 1
        self._calls.put((call, arguments))

    def wait(self) -> None:
        """Return when all calls are made; raise the first error among them, after which the rest were left out."""
        global computing
        computing = False
        with self._idle:
            self._idle.wait_for(lambda: self._pending == 0)
            error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while True:
            call, arguments = self._calls.get()
            error = None
            if self._error is None:
                try:
                    call(*arguments)
                except BaseException as raised:
                    error = raised
            del call, arguments  # what was reduced is not kept alive by a thread that waits for more
            with self._idle:
                self._error = self._error or error
                self._pending -= 1
                self._idle.notify_all()


class Foreground:
    """The same without a thread: the calls are made by `wait`."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def start(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Have the call made by `wait`."""
        self._calls.append((call, arguments))

    def wait(self) -> None:
        """Make the calls."""
        calls, self._calls = self._calls, []
        for call, arguments in calls:
            call(*arguments)
