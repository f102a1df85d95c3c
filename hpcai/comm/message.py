"""Messages between two ranks. A header tells dtype and shape of the array, so that a receiver that expects others gets an error.

The array is received once its header is here: Open MPI 5 crashes where a long message comes to a shorter array. Messages are kept
until they have ended, also where nobody waits for them.
"""

from __future__ import annotations

import functools
import struct
import zlib
from typing import Protocol

import numpy as np

from hpcai.comm import call
from hpcai.comm.door import Door
from hpcai.comm.wire import Pending, Wire, begin
from hpcai.errors import RankMismatch, counted
from hpcai.xp import Array

MESSAGE_BYTES = 1 << 30
"""The longest message, in bytes."""

ARRAYS, HEADERS = 2, 4
"""The first of the wire's lanes for the arrays and for the headers of messages; collectives use the lanes below."""

_HEADER = struct.Struct("<q56s")
"""The number of bytes; dtype and shape in words."""


class Caller(Protocol):
    """What a message needs of its communicator."""

    rank: int
    size: int
    wire: Wire
    door: Door


class Sent:
    """An array on its way to another rank; call `wait()` before you change it."""

    def __init__(self, comm: Caller, x: Array, to: int, lane: int):
        self._door, self._told = comm.door, np.frombuffer(header(x), np.uint8)
        self._x: Array | None = x  # kept while it is under way
        self._parts = comm.wire.send(self._told, to, HEADERS + lane), comm.wire.send(_bytes(x), to, ARRAYS + lane)

    def done(self) -> bool:
        """True if `wait` would return at once."""
        self._door.check("done")
        return self.advance()

    def wait(self) -> None:
        """Return when the array may be changed."""
        self._door.check("wait")
        for part in self._parts:
            part.wait()
        self._x = None

    def advance(self) -> bool:
        """`done`, without the check who calls."""
        if not all(part.done() for part in self._parts):
            return False
        self._x = None
        return True


class Received:
    """An array that comes from another rank; it is there after `wait()`."""

    def __init__(self, comm: Caller, x: Array, source: int, lane: int):
        self._comm, self._source, self._lane = comm, source, lane
        self._x: Array | None = x  # this and the next are kept while it is under way
        self._target: Array | None = None
        self._told = np.zeros(_HEADER.size, np.uint8)
        self.header_here = comm.wire.receive(self._told, source, HEADERS + lane)
        self._array: Pending | None = None
        self._problem: RankMismatch | None = None
        self._place = (id(comm.wire), source, lane)
        comm.wire.expected.setdefault(self._place, []).append(self)

    def done(self) -> bool:
        """True if `wait` would return at once. Raises: RankMismatch, as `wait`."""
        self._comm.door.check("done")
        if not self.advance():
            return False
        if self._problem is not None:
            raise self._problem
        return True

    def wait(self) -> None:
        """Return when the array is there.

        Raises: RankMismatch if the sender's has another dtype or shape; StallError after the time limit.
        """
        self._comm.door.check("wait")
        while self._array is None:
            self._comm.wire.expected[self._place][0].header_here.wait()
            begin(self._comm.wire.expected)
        self._array.wait()
        self._x = self._target = None
        if self._problem is not None:
            raise self._problem

    def advance(self) -> bool:
        """`done`, without the check who calls and without the error of a mismatch."""
        begin(self._comm.wire.expected)
        if self._array is None or not self._array.done():
            return False
        self._x = self._target = None
        return True

    def take_array(self) -> None:
        """Receive the array, once its header is here; one that does not match goes into another buffer."""
        assert self._x is not None
        target = _bytes(self._x)
        if self._told.tobytes() != header(self._x):
            nbytes, text = _HEADER.unpack(self._told.tobytes())
            rank, source = (self._comm.wire.ranks[one] for one in (self._comm.rank, self._source))
            wanted = f"{counted(self._x.nbytes, 'byte')}, {self._x.dtype}{list(self._x.shape)}"
            self._problem = RankMismatch(
                f"rank {rank} receives {wanted}, from rank {source}, which sent {counted(nbytes, 'byte')}, "
                f"{text.rstrip(bytes(1)).decode(errors='replace')}: dtype and shape must be the same"
            )
            target = np.empty(nbytes, np.uint8)
        self._target = target
        self._array = self._comm.wire.receive(target, self._source, ARRAYS + self._lane)


Message = Sent | Received


def header(x: Array) -> bytes:
    """The header of an array's message. Headers are cached, since training sends few kinds of arrays."""
    return _header(x.nbytes, x.dtype, x.shape)


@functools.lru_cache(maxsize=256)
def _header(nbytes: int, dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    words = f"{dtype}{list(shape)}"
    if len(words) > 56:
        words = f"{words[:40]}... {zlib.crc32(words.encode()):08x}"
    return _HEADER.pack(nbytes, words.encode())


def isend(comm: Caller, x: Array, to: int, lane: int) -> Sent:
    """See Communicator.isend."""
    _check("isend", comm, x, to, lane)
    return Sent(comm, x, int(to), int(lane))


def irecv(comm: Caller, x: Array, source: int, lane: int) -> Received:
    """See Communicator.irecv."""
    _check("irecv", comm, x, source, lane)
    if not x.flags.writeable:
        raise ValueError("irecv wants a writeable array; this one is read-only")
    return Received(comm, x, int(source), int(lane))


def send_bare(comm: Caller, x: Array, to: int, lane: int) -> Pending:
    """Start to send without a header, which costs some 0.1 ms. Both ranks must know dtype and shape, as a pipeline's stages do.

    The caller keeps x until `wait()`, and sends no messages with headers on the same lane of the communicator.
    """
    return comm.wire.send(x, to, ARRAYS + lane)


def receive_bare(comm: Caller, x: Array, source: int, lane: int) -> Pending:
    """Start to receive an array that `send_bare` sends."""
    return comm.wire.receive(x, source, ARRAYS + lane)


def _check(kind: str, comm: Caller, x: Array, peer: int, lane: int) -> None:
    problem = call.peer_problem(kind, peer, lane, comm.rank, comm.size) or call.memory_problem(kind, x)
    if problem is None and x.nbytes > MESSAGE_BYTES:
        problem = ValueError(f"{kind} carries 2**30 bytes at most, got {x.nbytes}: send slices")
    if problem is not None:
        raise problem


def _bytes(x: Array) -> Array:
    return x.reshape(-1).view(np.uint8)
