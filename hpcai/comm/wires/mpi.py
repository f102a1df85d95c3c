"""MPI as a wire."""

from __future__ import annotations

import contextlib
import pickle
import time
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hpcai import ops
from hpcai.comm.diagnosis import stall
from hpcai.comm.launch.host import boot_id
from hpcai.comm.launch.launcher import pretended_node
from hpcai.comm.wire import begin
from hpcai.comm.wires import library, mapping, ordinals, ulfm
from hpcai.comm.wires.requests import AGREEMENT, Request
from hpcai.errors import LaunchError, RankFailed, counted
from hpcai.xp import Array, accumulation_dtype

MESSAGE_BYTES = 1 << 30
"""Bytes of the longest library call: longer arrays are cut into pieces, since Open MPI rejects counts from 2**31 on."""

IDLE_REQUESTS = 1024
"""How many persistent requests are kept, each for the next message between the same buffer and peer."""

ALARM_TAG, EXCHANGE_TAG, CONNECTING_TAG, ALARM_S = 32000, 31999, 31998, 3.0
"""Tags of messages: by which waiting ranks find out who does not wait, of exchanges, of first contact; seconds of listening."""


class MpiWire:
    """A wire on an mpi4py communicator, which it owns."""

    def __init__(self, comm: Any, family: _Family | None = None, ranks: Sequence[int] = ()):
        """family: that of the wire from which this one was split. ranks: the numbers of its ranks in the world."""
        self.comm = comm
        comm.Set_errhandler(library.load().ERRORS_RETURN)  # errors become exceptions
        self.family = family or _Family()
        self.family.wires.add(self)
        self.rank, self.size, self.ranks = comm.rank, comm.size, ranks or range(comm.size)
        self.MPI = library.load()
        self.expected, self.under_way = self.family.expected, self.family.under_way
        self.timeout_s, self.waiting_since, self.waited_s = stall.timeout_s(), 0.0, 0.0
        self._idle: dict[tuple[Any, ...], Any] = {}
        self._key = np.empty(16, np.int64)
        self._seen = np.empty(16, np.int64)

    def send(self, x: Array, to: int, lane: int = 0) -> Any:
        """Start a persistent send (MPI_Send_init) of the array's bytes, with the lane as tag."""
        return self._start(self.comm.Send_init, x, to, lane, "a send")

    def receive(self, x: Array, source: int, lane: int = 0) -> Any:
        """Start a persistent receive (MPI_Recv_init) into the array's bytes."""
        return self._start(self.comm.Recv_init, x, source, lane, "a receive")

    def _start(self, init: Callable[..., Any], x: Array, peer: int, lane: int, what: str) -> Request:
        """Start a new or an idle request. Gradients stay at the same addresses, so most requests can be started again."""
        address = x.__array_interface__["data"][0]
        key = (what, address, x.nbytes, peer, lane)
        request = self._idle.pop(key, None)
        with self.failing(what):
            if request is None:  # by address: an idle request keeps no array alive
                request = init([self.MPI.buffer.fromaddress(address, x.nbytes), self.MPI.BYTE], peer, lane)
            request.Start()
        self.under_way[0] += 1
        return Request(request, self, what, key)

    @contextlib.contextmanager
    def failing(self, what: str) -> Iterator[None]:
        """Turn MPI's errors about failed processes into RankFailed."""
        try:
            yield
        except self.MPI.Exception as error:
            if not ulfm.is_failure(self.MPI, error):
                raise
            raise RankFailed(f"another rank failed while rank {self.rank} waited in {what}{self.advice}") from None

    @property
    def advice(self) -> str:
        """The end of an error message where the other ranks went on without this wire; else empty."""
        return ulfm.GIVEN_UP if self.family.given_up else ""

    def keep(self, request: Any, key: tuple[Any, ...]) -> None:
        """Keep a completed persistent request for the next message like it; beyond IDLE_REQUESTS the oldest one is freed."""
        self.under_way[0] -= 1
        self._idle[key] = request
        if len(self._idle) > IDLE_REQUESTS:
            self._idle.pop(next(iter(self._idle))).Free()

    def progress(self) -> None:
        """Move the messages that are under way: MPI does so in each of its calls, such as MPI_Iprobe."""
        with contextlib.suppress(self.MPI.Exception, RankFailed):  # which the message's own wait meets too
            begin(self.expected)
            self.comm.Iprobe(self.rank, ALARM_TAG)

    def agree(self, key: Sequence[int]) -> bool:
        """Compare the key on all ranks with one small MPI_Iallreduce: its maximum equals its minimum."""
        n = len(key)
        self._key[:n] = key
        np.negative(self._key[:n], out=self._key[n : 2 * n])
        with self.failing(AGREEMENT):
            request = self.comm.Iallreduce(self._key[: 2 * n], self._seen[: 2 * n], self.MPI.MAX)
        Request(request, self, AGREEMENT).wait()
        return bool((self._seen[:n] == -self._seen[n : 2 * n]).all())

    def missing(self) -> list[int]:
        """The ranks that do not wait, for a wait in vain where the watch got no answer: tells all ranks that this one waits, and
        listens ALARM_S for others that say the same.
        """
        word, status = bytearray(1), self.MPI.Status()
        for rank in range(self.size):
            self.comm.Isend([word, self.MPI.BYTE], rank, ALARM_TAG)
        heard: set[int] = set()
        end = time.monotonic() + ALARM_S
        while len(heard) < self.size and time.monotonic() < end:
            if self.comm.Iprobe(self.MPI.ANY_SOURCE, ALARM_TAG, status):
                self.comm.Recv([word, self.MPI.BYTE], status.Get_source(), ALARM_TAG)
                heard.add(status.Get_source())
            else:
                time.sleep(0.01)
        return sorted(set(range(self.size)) - heard)

    def exchange(self, value: Any) -> list[Any]:
        """MPI_Allgather of pickled values."""
        with self.failing("an exchange"):
            return self._exchange_by_messages(value) if ulfm.enabled() else self.comm.allgather(value)

    def _exchange_by_messages(self, value: Any) -> list[Any]:
        """Exchange by way of rank 0, which pickles all values once, so that all ranks get the same. If a rank fails in a
        collective of the library, the others may get garbage without an error.
        """
        raw = pickle.dumps(value)
        if self.rank:
            self._post(raw, 0)
            return pickle.loads(self._take(0))
        others = [pickle.loads(self._take(rank)) for rank in range(1, self.size)]
        whole = pickle.dumps([pickle.loads(raw), *others])
        for rank in range(1, self.size):
            self._post(whole, rank)
        return pickle.loads(whole)

    def _post(self, raw: bytes, to: int) -> None:
        self.send(np.array([len(raw)]), to, EXCHANGE_TAG).wait()
        self.send(np.frombuffer(raw, np.uint8), to, EXCHANGE_TAG).wait()

    def _take(self, source: int) -> bytes:
        length = np.zeros(1, np.int64)
        self.receive(length, source, EXCHANGE_TAG).wait()
        raw = np.empty(int(length[0]), np.uint8)
        self.receive(raw, source, EXCHANGE_TAG).wait()
        return raw.tobytes()

    def split(self, color: int | None, key: int) -> MpiWire | None:
        """MPI_Comm_split; where ranks may fail, the group that it makes is compared with the colors and keys of the ranks."""
        if ulfm.enabled():
            return self._split_after_exchange(color, key)
        with self.failing("a split"):
            made = self.comm.Split(self.MPI.UNDEFINED if color is None else color, key)
            ranks = () if color is None else made.allgather(self.ranks[self.rank])
        return None if color is None else MpiWire(made, self.family, ranks)

    def _split_after_exchange(self, color: int | None, key: int) -> MpiWire | None:
        return self._split_as_told(self.exchange((color, key)), color, key)

    def _split_as_told(self, told: list[tuple[int | None, int]], color: int | None, key: int) -> MpiWire | None:
        members = [rank for _, rank in sorted((place[1], rank) for rank, place in enumerate(told) if place[0] == color)]
        group = self.comm.Get_group().Incl(members)
        colors = [place[0] for place in told if place[0] is not None]
        with self.failing("a split"):
            if len(colors) > len(set(colors)):
                made = self.comm.Split(self.MPI.UNDEFINED if color is None else color, key)
            else:  # groups of one rank, made alone: Split would wait for ever if another rank failed, revoked or not
                made = None if color is None else self.comm.Create_group(group)
        if color is None:
            return None
        if self.MPI.Group.Compare(made.Get_group(), group) != self.MPI.IDENT:
            raise RankFailed(f"another rank failed in a split, which came out wrong on rank {self.rank}")
        return MpiWire(made, self.family, [self.ranks[rank] for rank in members])

    def node_color(self) -> int:
        """The lowest rank that shares memory with this one."""
        pretended = pretended_node(self.rank)
        if pretended is not None:
            return pretended
        if ulfm.enabled():
            return (hosts := self.exchange(boot_id())).index(hosts[self.rank])
        with self.failing("a split"):
            shared = self.comm.Split_type(self.MPI.COMM_TYPE_SHARED)
            shared.Set_errhandler(self.MPI.ERRORS_RETURN)
            lowest = shared.allreduce(self.rank, self.MPI.MIN)
            shared.Free()
        return lowest

    def shared(self, bytes_per_rank: int) -> Array | None:
        """Memory without a name, mapped by all ranks (see mapping.py)."""
        return mapping.shared(self, bytes_per_rank)

    def on_failure(self, release: Callable[[], None]) -> None:
        """Register `release`, a method that `revoke` calls for as long as its object lives."""
        self.family.releases.append(weakref.WeakMethod(release))

    def revoke(self) -> None:
        """End all waits of all ranks, now and later, on this wire and the wires of its family, with RankFailed."""
        self.family.given_up = True
        for method in self.family.releases:
            if (release := method()) is not None:
                release()
        for wire in list(self.family.wires):
            if not wire.comm.Is_revoked():
                wire.comm.Revoke()

    def shrink(self) -> MpiWire:
        """A wire among the ranks that live, in their old order. All of them call it, after `revoke`."""
        return MpiWire(self.comm.Shrink())

    def grow(self, count: int, command: Sequence[str]) -> MpiWire:
        """MPI_Comm_spawn and MPI_Intercomm_merge; the new ranks call `job.merged`. Raises: LaunchError if they cannot start."""
        try:
            between = self.comm.Spawn(command[0], list(command[1:]), maxprocs=count, info=self._init_returns(), root=0)
            return MpiWire(between.Merge(high=False))
        except self.MPI.Exception as error:
            raise LaunchError(f"{counted(count, 'rank')} could not be started: {error}") from None

    def _init_returns(self) -> Any:
        """Have new ranks raise an error if their start fails: by default they abort, and mpirun ends with the error's number."""
        return self.MPI.Info.Create({"mpi_initial_errhandler": "mpi_errors_return"})

    def connect_all(self) -> None:
        """Exchange an empty message with every other rank. Open MPI asks its launcher for a peer's address before the first
        message to it, and waits for ever if the peer has failed by then, as in Revoke, which sends to all ranks.
        """
        nothing, others = bytearray(), [rank for rank in range(self.size) if rank != self.rank]
        with self.failing("the first messages"):
            pending = [self.comm.Irecv(nothing, rank, CONNECTING_TAG) for rank in others]
            pending += [self.comm.Isend(nothing, rank, CONNECTING_TAG) for rank in others]
            for request in pending:
                request.Wait()

    def why_not_elastic(self, growing: bool) -> str:
        """Why ranks cannot outlive others here, or (`growing`) new ranks cannot be started; empty if they can."""
        return ulfm.why_not(library.name(), growing)

    def all_agree(self, fine: bool) -> bool:
        """MPIX_Comm_agree: True on all ranks that live if `fine` is True on all and no rank has failed; on a revoked wire too."""
        try:
            return bool(self.comm.Agree(int(fine)))
        except self.MPI.Exception:
            return False

    def serves_threads(self) -> bool:
        """True if MPI_Query_thread gives MPI_THREAD_SERIALIZED or more."""
        return self.MPI.Query_thread() >= self.MPI.THREAD_SERIALIZED

    def describe(self) -> str:
        """The MPI library's name and version."""
        return library.name()

    def library_allreduce(self, x: Array, op: str) -> None:
        """The library's own MPI_Allreduce, in place, in pieces of at most 2**30 bytes. 16-bit values are sent as f32. For "max"
        and "min" floats are sent as integers of the same order: MPI does not define the result of NaN and signed zeros there, and
        ranks got different ones.
        """
        wide = accumulation_dtype(x.dtype)
        verb = {"sum": self.MPI.SUM, "mean": self.MPI.SUM, "max": self.MPI.MAX, "min": self.MPI.MIN}[op]
        step = MESSAGE_BYTES // wide.itemsize
        for start in range(0, x.size, step):
            piece = x[start : start + step]
            acc = piece if wide == x.dtype else ops.cast_into.unchecked(np.empty(piece.shape, wide), piece)
            ordered = op in ("max", "min") and wide.kind == "f"
            sent = ordinals.of_floats(acc, op) if ordered else acc
            with self.failing("MPI_Allreduce"):
                self.comm.Allreduce(self.MPI.IN_PLACE, sent, verb)
            if ordered:
                ordinals.floats_into(acc, sent)
            if op == "mean":
                ops.divide_into.unchecked(acc, self.size)
            if acc is not piece:
                ops.cast_into.unchecked(piece, acc)


class _Family:
    """What a wire and the wires split from it share: the wires, and the methods to call when they are revoked."""

    def __init__(self) -> None:
        self.wires: weakref.WeakSet[MpiWire] = weakref.WeakSet()
        self.releases: list[weakref.WeakMethod] = []
        self.expected: dict[Any, list[Any]] = {}
        self.under_way = array("q", [0])
        self.given_up = False
