"""Waiting for MPI requests: with a time limit, and without keeping a core from ranks or threads that share it."""

from __future__ import annotations

import os
import time
from typing import Any, Protocol

from hpcai.comm import background
from hpcai.comm.diagnosis import stacks, stall
from hpcai.comm.launch import cores
from hpcai.comm.wire import Wire, begin
from hpcai.comm.wires import ulfm
from hpcai.errors import RankFailed

POLLS, YIELD_S, NAP_S, BESIDE_NAP_S = 200, 0.001, 0.0001, 0.0004
"""A wait polls POLLS times, then yields the core between polls for YIELD_S, then sleeps NAP_S between polls. Beside computation
it sleeps up to BESIDE_NAP_S."""

AGREEMENT = "a collective"
"""The name of a wait in `agree`, which ends when all ranks have come, so its time is spent on late ranks, not on transfer."""


class Owner(Wire, Protocol):
    """The wire of a request."""

    MPI: Any

    @property
    def advice(self) -> str:
        """The end of an error message where the other ranks went on without this wire; else empty."""

    def keep(self, request: Any, key: tuple[Any, ...]) -> None:
        """Keep a completed persistent request for the next message like it."""

    def missing(self) -> list[int]:
        """The ranks that have not come, after a wait in vain."""


class Request:
    """An MPI request with a time limit, whose wait leaves the core to ranks and threads that share it."""

    def __init__(self, request: Any, wire: Owner, what: str, key: tuple[Any, ...] | None = None):
        self.request, self.wire, self.what, self.key, self.complete = request, wire, what, key, False

    def done(self) -> bool:
        """True if the request is complete, by MPI_Test until that gives True once."""
        if not self.complete and self._test():
            self.complete = True
            if self.key:
                self.wire.keep(self.request, self.key)
        return self.complete

    def _test(self) -> bool:
        try:
            return self.request.Test()
        except self.wire.MPI.Exception as error:
            if not ulfm.is_failure(self.wire.MPI, error):
                raise
            raise RankFailed(f"another rank failed while rank {self.wire.rank} waited in {self.what}{self.wire.advice}") from None

    def _done_beside(self) -> bool:
        """`done`, after receiving arrays whose headers are here, since other ranks may wait until they are received."""
        if self.wire.expected:
            begin(self.wire.expected)
        return self.done()

    @stacks.waits
    def wait(self) -> None:
        """Poll, then poll and yield, then poll and nap; raise StallError after the time limit.

        While another thread computes it naps from the start, unless there is a core for both.
        """
        for _ in range(POLLS):
            if self._done_beside():
                return
            if background.computing and not cores.spare_core():
                break
        self.wire.waiting_since = time.monotonic()
        try:
            self._wait_long(self.wire.waiting_since)
        finally:
            if self.what == AGREEMENT:
                self.wire.waited_s += time.monotonic() - self.wire.waiting_since
            self.wire.waiting_since = 0.0

    def _wait_long(self, begin: float) -> None:
        nap = BESIDE_NAP_S / 16
        while not self._done_beside():
            waited = time.monotonic() - begin
            if background.computing and not cores.spare_core():
                time.sleep(nap)
                nap = min(2 * nap, BESIDE_NAP_S)
            elif waited < YIELD_S:
                os.sched_yield()
                continue
            else:
                time.sleep(NAP_S)
            if waited > self.wire.timeout_s:
                raise stall.error(self.wire, self.what, self.wire.missing)
