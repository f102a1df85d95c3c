"""A wire of queues between threads: ranks are threads of one process."""

from __future__ import annotations

import itertools
import pickle
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpcai.comm.diagnosis import stall
from hpcai.comm.launch.launcher import pretended_node
from hpcai.comm.wire import ALIGNMENT
from hpcai.errors import RankFailed, UsageError
from hpcai.xp import Array

LANES = 6
"""The number of lanes: two for collectives, four for messages (see message.py)."""


class World:
    """What all threads of a run share: whether one of them has failed, and how to release the threads that wait for it."""

    def __init__(self) -> None:
        self.failed = threading.Event()
        self.releases: list[Callable[[], None]] = []

    def on_failure(self, release: Callable[[], None]) -> None:
        """Have `release` called when a thread fails, or now if one has failed."""
        self.releases.append(release)
        if self.failed.is_set():
            release()

    def fail(self) -> None:
        """Record that a thread has failed, and release the others."""
        self.failed.set()
        for release in self.releases:
            release()


class Group:
    """State shared by the ranks of one communicator: a mailbox for each ordered pair and lane, a barrier, a table of values."""

    def __init__(self, size: int, world: World, ranks: Sequence[int] = ()):
        self.size, self.world, self.ranks = size, world, ranks or range(size)
        pairs = list(itertools.product(range(size), range(size), range(LANES)))
        self.mail: dict[tuple[int, ...], queue.SimpleQueue] = {pair: queue.SimpleQueue() for pair in pairs}
        self.started: dict[tuple[int, ...], list[_Receive]] = {pair: [] for pair in pairs}
        self.barrier = threading.Barrier(size)
        world.on_failure(self.barrier.abort)
        self.met = [0] * size  # how often each rank has come to the barrier
        self.table: list[Any] = [None] * size
        self.children: dict[int, Group] = {}


class _Sent:
    def wait(self) -> None:
        """Return at once: the array was copied when the send began."""

    def done(self) -> bool:
        """True: the array was copied when the send began."""
        return True


class _Receive:
    def __init__(self, wire: ThreadWire, source: int, lane: int, x: Array):
        """Add this receive to those of its mailbox that are not complete, which get the messages in order."""
        self.wire, self.source, self.x, self.complete = wire, source, x, False
        pair = source, wire.rank, lane
        self.mail, self.started = wire.group.mail[pair], wire.group.started[pair]
        self.started.append(self)

    def done(self) -> bool:
        """True if the message is here; takes it."""
        while not self.complete and not self.mail.empty():
            self._take(0)
        return self.complete

    def wait(self) -> None:
        """Wait for the message. Raises: RankFailed if another rank fails meanwhile; StallError after the time limit."""
        began = time.monotonic()
        while not self.complete and not self._take(0.05):
            if self.wire.group.world.failed.is_set():
                raise RankFailed("another rank failed while this one waited for its message")
            if time.monotonic() - began > self.wire.timeout_s:
                raise stall.error(self.wire, "the receive of a message", lambda: [self.source])

    def _take(self, timeout_s: float) -> bool:
        try:
            came = self.mail.get(timeout=timeout_s) if timeout_s else self.mail.get_nowait()
        except queue.Empty:
            return False
        first = self.started.pop(0)
        first.x[...], first.complete = came, True
        return self.complete


class ThreadWire:
    """A wire between threads: messages are copies in queues."""

    def __init__(self, rank: int, group: Group):
        self.rank, self.size, self.ranks, self.group = rank, group.size, group.ranks, group
        self.timeout_s, self.waiting_since, self.waited_s = stall.timeout_s(), 0.0, 0.0
        self.expected: dict[Any, list[Any]] = {}
        self.under_way = None

    def send(self, x: Array, to: int, lane: int = 0) -> _Sent:
        """Copy `x` into the mailbox of rank `to`."""
        self.group.mail[self.rank, to, lane].put(x.copy())
        return _Sent()

    def receive(self, x: Array, source: int, lane: int = 0) -> _Receive:
        """Receive the next message of `source` into `x`, at `wait` or `done`."""
        return _Receive(self, source, lane, x)

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's value, pickled as over MPI, so that ranks share no objects."""
        return [pickle.loads(other) for other in self._gather(pickle.dumps(value))]

    def progress(self) -> None:
        """Nothing: messages between threads move by themselves."""

    def agree(self, key: Sequence[int]) -> bool:
        """True on all ranks if all have this key."""
        keys = self._gather(tuple(key))
        return all(other == keys[0] for other in keys)

    def split(self, color: int | None, key: int) -> ThreadWire | None:
        """The ranks with this color get a group of their own."""
        places = self._gather((color, key, self.rank))
        if self.rank == 0:
            self.group.children = {}
            for c in {place[0] for place in places if place[0] is not None}:
                ranks = [self.ranks[rank] for _, rank in sorted(p[1:] for p in places if p[0] == c)]
                self.group.children[c] = Group(len(ranks), self.group.world, ranks)
        self._meet()
        if color is None:
            return None
        members = sorted((p[1], p[2]) for p in places if p[0] == color)
        return ThreadWire(members.index((key, self.rank)), self.group.children[color])

    def node_color(self) -> int:
        """0, since all threads share memory, unless HPCAI_RANKS_PER_NODE pretends that there are several nodes."""
        return pretended_node(self.rank) or 0

    def shared(self, bytes_per_rank: int) -> Array:
        """Zeroed memory that rank 0 allocates, since threads share all memory."""
        made = np.zeros(self.size * bytes_per_rank + ALIGNMENT, np.uint8) if self.rank == 0 else None
        memory = self._gather(made)[0]
        start = -memory.ctypes.data % ALIGNMENT
        return memory[start : start + self.size * bytes_per_rank]

    def on_failure(self, release: Callable[[], None]) -> None:
        """Register `release`, which is called when a thread fails."""
        self.group.world.on_failure(release)

    def revoke(self) -> None:
        """Not supported. Raises: UsageError."""
        raise UsageError(self.why_not_elastic())

    def shrink(self) -> ThreadWire:
        """Not supported. Raises: UsageError."""
        raise UsageError(self.why_not_elastic())

    def grow(self, count: int, command: Sequence[str]) -> ThreadWire:
        """Not supported. Raises: UsageError."""
        raise UsageError(self.why_not_elastic())

    def connect_all(self) -> None:
        """Not supported. Raises: UsageError."""
        raise UsageError(self.why_not_elastic())

    def all_agree(self, fine: bool) -> bool:
        """Not supported. Raises: UsageError."""
        raise UsageError(self.why_not_elastic())

    def why_not_elastic(self, growing: bool = False) -> str:
        """The reason: all threads end with their process."""
        return "ranks that are threads end together; start the program with mpirun"

    def serves_threads(self) -> bool:
        """True: queues serve any thread."""
        return True

    def describe(self) -> str:
        """The name of this wire, which has no version."""
        return "threads"

    def _gather(self, value: Any) -> list[Any]:
        self.group.table[self.rank] = value
        self._meet()
        values = list(self.group.table)
        self._meet()
        return values

    def _meet(self) -> None:
        met, began = self.group.met, time.monotonic()
        met[self.rank] += 1
        try:
            self.group.barrier.wait(self.timeout_s)
        except threading.BrokenBarrierError:
            if self.group.world.failed.is_set() or time.monotonic() - began < self.timeout_s:
                raise RankFailed("another rank failed while this one waited in a collective") from None
            late = [rank for rank in range(self.size) if met[rank] < met[self.rank]]
            raise stall.error(self, "a collective", lambda: late) from None
