"""Collectives beside computation: one thread makes them, in the order in which they were given.

While it works the thread that gave them keeps away from communicators (door.py sees to it), so MPI_THREAD_SERIALIZED is enough,
and since every rank gives its calls in the same order, they meet as they would without threads.
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
"""True while a thread of this process computes beside its collectives: then waits leave it the core. See mpi.py."""

PATIENCE_S = 3.0
"""How long calls that were given are waited for after an error between them and `wait`: ranks that failed may never take part."""

outstanding: dict[threading.Thread, Background] = {}
"""Threads that have given calls and have not waited for them, and to whom. Ranks may be threads, so there may be several."""

_workers: dict[threading.Thread, Background] = {}


class Background:
    """Carries out calls one after the other on a thread of its own, which starts with the first call and ends with the process.

    From `start` to the end of `wait` the thread that gave the calls makes none on communicators itself, nor gives any to another.

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
        """Have `call(*arguments)` made after those that were given before. Its result is dropped.

        Raises: UsageError if another thread's calls are not waited for yet, or this thread's at another Background.
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
        """Return when all calls are made; raise the first error among them, after which the rest were left out.

        Raises: UsageError within a call that a Background makes, which would wait for itself.
        """
        global computing
        self._check_process("wait")
        if threading.current_thread() in _workers:
            raise UsageError("wait() within a call that a Background makes would wait for itself: call it where calls are given")
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
        """After an error between `start` and `wait`, instead of it: wait as long as is sensible, and raise nothing.

        Where all ranks have the error they have given the same calls, which end. Where others do not come, the call that is under
        way is left to itself and those behind it are left out; until it ends, calls of this thread are refused with this error.
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
            raise UsageError(f"start() wants what is to be called and its arguments, got {call!r}: give comm.allreduce, x")
        thread = threading.current_thread()
        if thread is self._thread:
            return  # a call that gives more of them
        if thread in _workers:
            raise UsageError("start() within a call that another Background makes: give all calls to one")
        if self._giver is not None and self._giver is not thread:
            raise UsageError(f"start() on thread {thread.name!r} before the calls of thread {self._giver.name!r} are waited for")
        if self.abandoned is not None:
            raise UsageError(f"start() {why_abandoned(self.abandoned)}") from self.abandoned
        if outstanding.get(thread, self) is not self:
            raise UsageError(
                "start() while another Background carries calls of this thread: wait() for those, or give it this one"
            )
        self._giver = thread
        outstanding[thread] = self
        _open_short_way()

    def _check_process(self, what: str) -> None:
        if self._pid != os.getpid():
            raise UsageError(f"{what}() in a forked child, which has no thread to carry calls: make a Background there")

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

    def abandon(self, error: BaseException) -> None:
        """Leave the calls out, after an error before `wait`."""
        self._calls = []


class Request:
    """A call that is under way beside the thread that asked for it. `wait` for it before the array is used, or any other call is
    made on a communicator.
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
        """True if `wait` would return, or raise, at once."""
        return bool(self._outcome or self._error)

    def wait(self) -> Any:
        """Return the call's result, once all calls that this thread asked for before are made.

        Raises: the call's error; UsageError if it was left out, since an earlier one failed.
        """
        try:
            self._carrier.wait()
        except BaseException:
            if not self.done():
                raise
        if self._error:
            raise self._error[0]
        if not self._outcome:
            raise UsageError("this call was left out, since one that was asked for earlier failed")
        return self._outcome[0]


def of_this_thread() -> Background:
    """The carrier of this thread's requests."""
    found: Background | None = getattr(_own, "carrier", None)
    if found is None or found._pid != os.getpid():
        found = _own.carrier = Background()
    return found


_own = threading.local()


def why_abandoned(error: BaseException) -> str:
    """Why a call is refused while an abandoned one is still under way.

    >>> why_abandoned(ValueError("no"))
    'after ValueError: no; a call that a Background carries still waits for the other ranks, so end this one'
    """
    said = f"{type(error).__name__}: {error}".removesuffix(": ")
    return f"after {said}; a call that a Background carries still waits for the other ranks, so end this one"


def acting_for(thread: threading.Thread) -> threading.Thread:
    """The thread whose calls this one makes: its own, or those that were given to its Background."""
    carrier = _workers.get(thread)
    return thread if carrier is None or carrier._giver is None else carrier._giver


def _open_short_way() -> None:
    """The kernels look at nothing but the thread's number, so while calls are carried all go the long way (see door.py)."""
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
