"""The guard of a communicator's calls: only the thread that made it may call, once at a time, in the process that started MPI.

The calls of ranks can only be compared if each rank makes its calls in one order. Two threads have no common order, so calls of
the same shape could meet across threads and be summed. A thread may give its calls to a `Background`, which runs them in order;
it then makes none itself until it has waited for them. If the thread that made the communicator has ended, the next thread that
makes a call takes its place.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

from hpcai.comm import background
from hpcai.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")

FORKED = "fork"


class Door:
    """Checks who calls one communicator. `native`, where its ranks share memory, skips the check for the thread `caller`."""

    def __init__(self, native: Any):
        self.owner = background.acting_for(threading.current_thread())
        self.ident = self.owner.ident
        self.native, self.inside, self.forked = native, "", False
        self._open()
        _doors.add(self)

    def enter(self, what: str) -> None:
        """Begin a call named `what`. Raises: UsageError, as `check`."""
        if self.inside or background.outstanding or threading.get_ident() != self.ident:
            self.check(what)
        self.inside = what
        self._shut_short_way()

    def leave(self) -> None:
        """End the call."""
        self.inside = FORKED if self.forked else ""
        self._open()

    @contextlib.contextmanager
    def nested(self) -> Iterator[None]:
        """Within a call: allow further calls, which are part of it."""
        what, self.inside = self.inside, ""
        try:
            yield
        finally:
            self.inside = what
            self._shut_short_way()

    def check(self, what: str) -> None:
        """Raise UsageError, with the reason, if this thread may not begin the call named `what`."""
        if self.forked:
            raise UsageError(
                f"{what} in a forked child, which is no rank: let the child return its results to the rank that started it"
            )
        thread = threading.current_thread()
        carrier = background.outstanding.get(thread)
        if carrier is not None and carrier.abandoned is not None:
            raise UsageError(f"{what} {background.why_abandoned(carrier.abandoned)}") from carrier.abandoned
        if carrier is not None:
            raise UsageError(
                f"{what} while a Background carries calls of this thread: ranks could make them in different orders. "
                "wait() for them first, or give it this call too"
            )
        acting = background.acting_for(thread)
        if acting is not self.owner:
            if self.owner.is_alive():
                raise UsageError(
                    f"{what} on thread {thread.name!r}, but the communicator is that of thread {self.owner.name!r}, which made "
                    "it: ranks could make calls of two threads in different orders. Give the call to a hpcai.Background there"
                )
            self.owner, self.ident = thread, threading.get_ident()
        if self.inside:
            raise UsageError(
                f"{what} while {self.inside} is under way on the same communicator, as in a signal handler, a finalizer or "
                "between the arrays of allgather_each: make it afterwards"
            )

    def _shut_short_way(self) -> None:
        """Have calls that are made meanwhile, as by a signal handler, checked here."""
        if self.native is not None:
            self.native.caller = 0

    def _open(self) -> None:
        if self.native is not None:
            self.native.caller = 0 if self.forked else self.ident

    def shut(self) -> None:
        """Reject all calls from now on: this process is a forked child, and would take its parent's place."""
        self.forked, self.inside = True, FORKED
        self._open()


_doors: weakref.WeakSet[Door] = weakref.WeakSet()


def alone(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Decorates a method of a communicator: each call is checked by the communicator's door, unless there is one rank only."""
    what = method.__name__

    @functools.wraps(method)
    def called(self: Any, /, *arguments: P.args, **named: P.kwargs) -> T:
        if self.size == 1:
            return method(self, *arguments, **named)
        self.door.enter(what)
        try:
            return method(self, *arguments, **named)
        finally:
            self.door.leave()

    return called


def _fork() -> None:
    for door in list(_doors):
        door.shut()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork)
