"""Messages between two ranks: a header says what comes, so that an array of another length or dtype is an error where it is
received; and what is under way is kept, also where nobody waits for it.
"""

from __future__ import annotations

import struct
import time
import zlib
from typing import TYPE_CHECKING

import numpy as np

from hpcai.comm import call
from hpcai.comm.wire import Pending
from hpcai.errors import RankFailed, RankMismatch
from hpcai.xp import Array

if TYPE_CHECKING:
    from hpcai.comm.communicator import Communicator

MESSAGE_BYTES = 1 << 30
"""The longest message."""

FIRST_LANE = 2
"""Lanes of the wire from here on are messages'; the ones before are collectives', which would take them for their own."""

REST_S = 5.0
"""How long what is not wanted may be on its way behind its header."""

_HEADER = struct.Struct("<q56s")
"""Bytes, and the dtype in words."""


class Message:
    """A message under way; `wait()` before the array is changed (a send) or read (a receive)."""

    def __init__(self, comm: Communicator, x: Array, peer: int, header: Array, parts: tuple[Pending, Pending], receives: bool):
        self._comm, self._x, self._peer, self._header, self._parts, self._receives = comm, x, peer, header, parts, receives
        self._problem: RankMismatch | None = None
        self.over = False

    def done(self) -> bool:
        """True if `wait` would return at once."""
        self._comm.door.check("done")
        self.advance()
        if self._problem is not None:
            raise self._problem
        return self.over

    def wait(self) -> None:
        """Return when the array may be used again.

        Raises: RankMismatch if the sender's array had another length or dtype; StallError after the time limit.
        """
        self._comm.door.check("wait")
        if not self.over:
            self._parts[0].wait()
            if self._compare() is None:
                self._parts[1].wait()
                self.over = True
        end = time.monotonic() + REST_S
        while not self.advance() and time.monotonic() < end:
            time.sleep(0.001)
        if self._problem is not None:
            raise self._problem

    def advance(self) -> bool:
        """Look whether it is over, without raising what is wrong with what came."""
        if not self.over and self._parts[0].done():
            try:
                self.over = self._parts[1].done()
            except RankFailed:
                raise
            except Exception:  # it is longer than the array here, as its header says
                if self._compare() is None:
                    raise
                self.over = True
            self._compare()
        return self.over

    def _compare(self) -> RankMismatch | None:
        """What is wrong with what comes, if anything."""
        if self._receives and self._problem is None and self._header.tobytes() != header(self._x):
            nbytes, text = _HEADER.unpack(self._header.tobytes())
            rank, peer = (self._comm.wire.ranks[one] for one in (self._comm.rank, self._peer))
            self._problem = RankMismatch(
                f"rank {rank} receives {self._x.nbytes} bytes of {self._x.dtype} from rank {peer}, which sent {nbytes} bytes of "
                f"{text.rstrip(bytes(1)).decode(errors='replace')}; the array is overwritten in part"
            )
        return self._problem


def header(x: Array) -> bytes:
    """What a message tells of its array."""
    words = str(x.dtype)
    if len(words) > 56:
        words = f"{words[:40]}... {zlib.crc32(words.encode()):08x}"
    return _HEADER.pack(x.nbytes, words.encode())


def send(comm: Communicator, x: Array, to: int, lane: int) -> Message:
    """Start to send."""
    _check("send", comm, x, to, lane)
    told, flat = np.frombuffer(header(x), np.uint8), _bytes(x)
    parts = comm.wire.send(told, int(to), FIRST_LANE + lane), comm.wire.send(flat, int(to), FIRST_LANE + lane)
    return Message(comm, x, to, told, parts, receives=False)


def receive(comm: Communicator, x: Array, source: int, lane: int) -> Message:
    """Start to receive."""
    _check("receive", comm, x, source, lane)
    if not x.flags.writeable:
        raise ValueError("receive wants a writeable array; this one is read-only")
    told, flat = np.zeros(_HEADER.size, np.uint8), _bytes(x)
    parts = comm.wire.receive(told, int(source), FIRST_LANE + lane), comm.wire.receive(flat, int(source), FIRST_LANE + lane)
    return Message(comm, x, source, told, parts, receives=True)


def _check(kind: str, comm: Communicator, x: Array, peer: int, lane: int) -> None:
    problem = call.peer_problem(kind, peer, lane, comm.rank, comm.size) or call.memory_problem(kind, x)
    if problem is None and x.nbytes > MESSAGE_BYTES:
        problem = ValueError(f"{kind} carries 2**30 bytes at most, got {x.nbytes}: send slices")
    if problem is not None:
        raise problem


def _bytes(x: Array) -> Array:
    return x.reshape(-1).view(np.uint8)
