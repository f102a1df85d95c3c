"""Collectives beside computation: a background thread runs them, in the order in which they were given.

Meanwhile the thread that gave them makes no calls on communicators (door.py enforces that), so MPI_THREAD_SERIALIZED is enough.
Every rank gives its calls in the same order, so they meet as they would without threads.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from hpcai.errors import UsageError
from hpcai.ops import native

computing = False
"""True while a thread of this process computes beside its collectives: waits then leave the core to it (wires/requests.py)."""

PATIENCE_S = 3.0
"""Seconds for which `abandon` waits for the calls that were given: ranks that failed may never take part in them."""

outstanding: dict[threading.Thread, Background] = {}
"""Threads that have given calls and not waited for them, each with its Background. There are several where ranks are threads."""

_workers: dict[threading.Thread, Background] = {}


class Background:
    """Runs calls one after the other on a thread of its own, which starts with the first call and ends with the process.

    From `start` until `wait` returns, the thread that gave the calls makes no calls on communicators itself, and gives none to
    another Background.

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
        self.abandoned: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._giver: threading.Thread | None = None
        self._pid = os.getpid()

    def start(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Run `call(*arguments)` on the background thread, after the calls that were given before. Its result is dropped.

        Raises: UsageError if `call` cannot be called; while calls of another thread, or of this thread to another Background,
                have not been waited for; after `abandon`, until its calls end; in a forked child.
        """
        global computing
        self._check_start(call)
        computing = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="hpcai background")
            _workers[self._thread] = self
            self._thread.start()
        with self._idle:
            self._pending += 1
        self._calls.put((call, arguments))

    def wait(self) -> None:
        """Wait until all calls have run. After a call that failed the later ones are left out.

        Raises: the error of the call that failed; UsageError within a call that a Background runs, which would wait for itself,
                and in a forked child.
        """
        global computing
        self._check_process("wait")
        if threading.current_thread() in _workers:
            raise UsageError("wait() within a call that a Background runs would wait for itself: call it where calls are given")
        computing = False
        try:
            with self._idle:
                self._idle.wait_for(lambda: self._pending == 0)
                error, self._error = self._error, None
                self._free_giver()
        except BaseException as interrupt:
            self.abandon(interrupt)
            raise
        if error is not None:
            raise error

    def abandon(self, error: BaseException) -> None:
        """Replaces `wait` after an error between `start` and `wait`: waits PATIENCE_S at most, and raises nothing.

        If all ranks have the error, they have given the same calls, and these end. If other ranks do not come, the call under way
        goes on and the calls behind it are left out; until it ends, other calls of this thread raise UsageError with this error.
        """
        global computing
        computing = False
        if self._pid != os.getpid() or threading.current_thread() in _workers:
            return
        with self._idle:
            if not self._idle.wait_for(lambda: self._pending == 0, PATIENCE_S):
                self._error, self.abandoned = self._error or error, error
                return
            self._error = None
            self._free_giver()

    def _free_giver(self) -> None:
        """Let the thread that gave calls make its own again."""
        self.abandoned = None
        if self._giver is not None:
            outstanding.pop(self._giver, None)
            self._giver = None
            _open_short_way()

    def _check_start(self, call: Any) -> None:
        """Refuse a call that could be made in another order on other ranks, or take this thread for its giver."""
        self._check_process("start")
        if not callable(call):
            raise UsageError(f"start() wants a callable and its arguments, got {call!r}, as in start(comm.allreduce, x)")
        thread = threading.current_thread()
        if thread is self._thread:
            return  # a call that gives more of them
        if thread in _workers:
            raise UsageError("start() within a call that another Background runs: give all calls to one Background")
        if self._giver is not None and self._giver is not thread:
            raise UsageError(
                f"start() on thread {thread.name!r} while calls of thread {self._giver.name!r} are under way: wait() there first"
            )
        if self.abandoned is not None:
            raise UsageError(f"start() {why_abandoned(self.abandoned)}") from self.abandoned
        if outstanding.get(thread, self) is not self:
            raise UsageError(
                "start() while another Background carries calls of this thread: wait() for it first, or give it this call too"
            )
        self._giver = thread
        outstanding[thread] = self
        _open_short_way()

    def _check_process(self, what: str) -> None:
        if self._pid != os.getpid():
            raise UsageError(f"{what}() in a forked child, which has no thread to run calls: make a Background there")

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
                if self.abandoned is not None and not self._pending:
                    self._error = None
                    self._free_giver()
                self._idle.notify_all()


class Deferred:
    """As Background, without a thread: `wait` runs the calls."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def start(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Keep the call for `wait`."""
        self._calls.append((call, arguments))

    def wait(self) -> None:
        """Run the calls."""
        calls, self._calls = self._calls, []
        for call, arguments in calls:
            call(*arguments)

    def abandon(self, error: BaseException) -> None:
        """Leave the calls out, after an error before `wait`."""
        self._calls = []


class Request:
    """A collective under way, as `Communicator.iallreduce` returns it. Call `wait` before you use the array or make another call
    on a communicator.
    """

    def __init__(self, carrier: Background | Deferred, call: Callable[..., Any], *arguments: Any):
        self._carrier, self._outcome, self._error = carrier, list[Any](), list[BaseException]()
        carrier.start(self._make, call, arguments)

    def _make(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            self._outcome.append(call(*arguments))
        except BaseException as error:
            self._error.append(error)
            raise

    def done(self) -> bool:
        """True if this call has ended, well or with an error."""
        return bool(self._outcome or self._error)

    def wait(self) -> Any:
        """Wait for all collectives that this thread has started until now, and return the result of this one.

        Raises: the error of this call; UsageError if this call was left out because an earlier one failed.
        """
        try:
            self._carrier.wait()
        except BaseException:
            if not self.done():
                raise
        if self._error:
            raise self._error[0]
        if not self._outcome:
            raise UsageError("this call was left out, since one that was started earlier failed: its wait() has the error")
        return self._outcome[0]


def of_this_thread() -> Background:
    """The Background that runs this thread's requests."""
    found: Background | None = getattr(_own, "carrier", None)
    if found is None or found._pid != os.getpid():
        found = _own.carrier = Background()
    return found


_own = threading.local()


def why_abandoned(error: BaseException) -> str:
    """Why a call is refused while an abandoned one is still under way.

    >>> why_abandoned(ValueError("no"))
    'after ValueError: no; a call that a Background carries still waits for the other ranks, so end this rank'
    """
    said = f"{type(error).__name__}: {error}".removesuffix(": ")
    return f"after {said}; a call that a Background carries still waits for the other ranks, so end this rank"


def acting_for(thread: threading.Thread) -> threading.Thread:
    """The thread for which `thread` makes calls: the one that gave them if `thread` is a Background's, else `thread` itself."""
    carrier = _workers.get(thread)
    return thread if carrier is None or carrier._giver is None else carrier._giver


def _open_short_way() -> None:
    """Let the kernels skip the checks of door.py, but not while a Background carries calls: they compare only thread numbers."""
    if (kernels := native.kernels()) is not None:
        kernels.open_short_way(not outstanding)


def _fork() -> None:
    """A forked child has none of the threads."""
    global computing
    computing = False
    outstanding.clear()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork)
