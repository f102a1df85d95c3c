"""Ranks of one node communicate through memory, without messages.

Each rank folds its own chunk straight from all ranks' arrays and writes the result to all of them, between two barriers
(kernels/cpu/ways.cpp). *Symmetric* arrays (`Communicator.symmetric_empty`) are in shared memory and are reduced in place. Other
arrays are read and written where they lie by the kernel's cross-memory attach; if a site forbids that (or HPCAI_REACH=0), they
are copied through small segments in shared memory. Values are always folded in the order of the ranks, so arrays of either kind
and any length give the same bytes.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpcai.comm.diagnosis import stall
from hpcai.comm.launch import host
from hpcai.comm.launch.launcher import launch
from hpcai.comm.wire import Wire
from hpcai.comm.wires import staging, ulfm
from hpcai.errors import RankFailed
from hpcai.ops import native
from hpcai.xp import Array

PAGE = 1 << 21
"""Arrays start at multiples of this many bytes: a huge page."""

POOL_BYTES = 256 << 20
"""Bytes of freed memory that are kept for the next arrays; more is given back to the system."""

ENDING_S = 1.0
"""Seconds within which the end of a process must show after its memory was lost."""

MOST_RANKS = 2048
"""A segment has room for 64 bytes for each other rank."""

STATUSES = ("DONE", "MISMATCH", "STALLED", "NOT_HERE", "UNREACHED")
DONE, MISMATCH, STALLED, NOT_HERE, UNREACHED = range(len(STATUSES))
"""How a native call ended."""


class Node:
    """The shared memory of a communicator whose ranks are all on one node."""

    def __init__(self, wire: Wire, desks: Array):
        self.wire, self.desks, self.given_up = wire, desks, False
        crowded = launch().local_size > (os.cpu_count() or 1) or wire.size > (os.cpu_count() or 1)
        self.native = native.node(wire.rank, wire.size, desks, stall.timeout_s(), crowded)
        self.blocks: dict[int, _Block] = {}
        self.dropped: set[int] = set()
        self.made = 0
        wire.on_failure(self.revoke)
        same = len(set(wire.exchange((host.boot_id(), host.namespace())))) == 1  # and all desks are set up
        known = wire.exchange((self.native.prove(), same and self.native.watch(), self.native.sleepers_can_fence()))
        reaches, self.notices_ends, can_fence = map(all, zip(*known, strict=True))
        self.reaches = reaches and os.environ.get("HPCAI_REACH") != "0"
        self.native.rely_on_sleepers(can_fence)
        self.native.reach(self.reaches)
        if (under_way := wire.under_way) is not None:
            self.native.poll_messages(under_way, under_way.buffer_info()[0], _progress_of(wire))
        self.native.staged_bytes, self.staged_by = wire.exchange(staging.limit(wire.size) if wire.rank == 0 else None)[0]

    def empty(self, shape: int | Sequence[int], dtype: Any) -> Array | None:
        """A symmetric array, or None where shared memory has run out. Collective: every rank makes the same one.

        Its memory returns to a pool when every rank has let go of the array and all its views.
        """
        dtype = np.dtype(dtype)
        count = math.prod([shape] if isinstance(shape, int) else shape)
        stride = max(1, -(-count * dtype.itemsize // PAGE)) * PAGE
        block = self._reuse(stride) or self._allocate(stride)
        if block is None:
            return None
        flat = np.asarray(_Owner(self, block)).view(np.uint8)
        return flat[: count * dtype.itemsize].view(dtype).reshape(shape)

    def addresses(self, x: Array) -> list[int] | None:
        """Return the address of each rank's part of the symmetric array (or slice) `x` in this process; None if `x` is not
        symmetric.
        """
        at = x.__array_interface__["data"][0]
        for block in self.blocks.values():
            offset = at - block.memory.ctypes.data - self.wire.rank * block.stride
            if 0 <= offset < block.stride:
                return [block.memory.ctypes.data + rank * block.stride + offset for rank in range(self.wire.size)]
        return None

    def raise_stall(self, what: str) -> None:
        """Raise StallError, with the ranks that have not come, or RankFailed if one of them has ended."""
        self._raise_if_lost(what, self.native.missing())
        raise stall.error(self.wire, what, self.native.missing)

    def raise_if_unreached(self, what: str) -> None:
        """After a failed access to another rank's memory: raise RankFailed if the access failed because its process ended."""
        end = time.monotonic() + ENDING_S
        while time.monotonic() < end:  # the memory of a process goes a little earlier than the process itself
            self._raise_if_lost(what, list(range(self.wire.size)))
            time.sleep(0.001)

    def revoke(self) -> None:
        """End all ranks' waits here, now and later, with RankFailed."""
        self.given_up = True
        self.native.revoke()

    def _raise_if_lost(self, what: str, missing: list[int]) -> None:
        """Raise RankFailed if the process of one of these ranks has ended, or another rank says that one has."""
        ended = [rank for rank in self.native.ended() if rank in missing]
        if ended or self.native.revoked:
            whom = f"rank {ended[0]} ended" if ended else "another rank failed"
            raise RankFailed(f"{whom} while rank {self.wire.rank} waited in {what}{ulfm.GIVEN_UP * self.given_up}")

    def _reuse(self, stride: int) -> _Block | None:
        """A block that all ranks have dropped and that is large enough, or None; blocks beyond POOL_BYTES are freed."""
        free = frozenset.intersection(*self.wire.exchange(frozenset(self.dropped)))
        fits = sorted((self.blocks[i].stride, i) for i in free if stride <= self.blocks[i].stride <= 2 * stride)
        chosen = fits[0][1] if fits else None
        pooled = 0
        for i in sorted(free - {chosen}):
            pooled += self.blocks[i].stride * self.wire.size
            if pooled > POOL_BYTES:
                self.native.remove_block(i)
                self.dropped.discard(i)
                del self.blocks[i]
        if chosen is None:
            return None
        self.dropped.discard(chosen)
        return self.blocks[chosen]

    def _allocate(self, stride: int) -> _Block | None:
        memory = self.wire.shared(stride)
        if memory is None:
            return None
        self.made += 1
        block = _Block(self.made, memory, stride)
        self.blocks[block.id] = block
        self.native.add_block(block.id, memory.ctypes.data, stride)
        return block


def _progress_of(wire: Wire) -> Callable[[], None]:
    """Return `wire.progress`, without keeping the wire alive."""
    method = weakref.WeakMethod(wire.progress)

    def progress() -> None:
        if (alive := method()) is not None:
            alive()

    return progress


class _Block:
    """One allocation: every rank's part, `stride` bytes each, one behind the other."""

    def __init__(self, id: int, memory: Array, stride: int):
        self.id, self.memory, self.stride = id, memory, stride


class _Owner:
    """Kept alive by a symmetric array and all its views; when it is collected, this rank has dropped the block."""

    def __init__(self, node: Node, block: _Block):
        mine = block.memory[node.wire.rank * block.stride : (node.wire.rank + 1) * block.stride]
        self.memory = block.memory
        self.__array_interface__ = mine.__array_interface__
        weakref.finalize(self, node.dropped.add, block.id)


def attach(wire: Wire) -> Node | None:
    """The node of this wire's ranks. Collective.

    None for one rank and for more than MOST_RANKS, if they do not share memory, if the kernels are not built, or if HPCAI_NODE=0.
    """
    if not 1 < wire.size <= MOST_RANKS or not all(wire.exchange(native.is_native() and os.environ.get("HPCAI_NODE") != "0")):
        return None
    if len(set(wire.exchange(wire.node_color()))) > 1:
        return None
    desks = wire.shared(native.desk_bytes())
    return None if desks is None else Node(wire, desks)
