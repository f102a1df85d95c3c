"""Across nodes: reduce-scatter on each node, a ring along each *rail*, all-gather on each node.

A rail is the ranks with the same place on each of N nodes of L ranks. Each rail reduces its share of the array, so every rank
handles 1/L of the elements on the network, and each element crosses it 2(N-1)/N times, however many ranks a node has.

Source: the two-level scheme of Jia et al., arXiv:1807.11205, with reduce-scatter and all-gather in place of its master rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hpcai import ops
from hpcai.comm.algorithms import ring
from hpcai.comm.collectives import Group
from hpcai.comm.wire import Pending
from hpcai.xp import Array, accumulation_dtype

SHARE_BYTES = 8 * ring.SEGMENT_BYTES
"""Bytes of a block that each rank sends to each other node."""


class Levels(NamedTuple):
    """The ranks on this node, and those with this rank's place on every node."""

    node: Group
    rail: Group


def levels(comm: Group) -> Levels | None:
    """The two levels of `comm`, or None where a node has one rank only or nodes have different numbers. Collective."""
    node = comm.split_by_node()
    if len(set(comm.allgather_object(node.size))) > 1 or node.size in (1, comm.size):
        return None
    rail = comm.split(node.rank)
    assert rail is not None
    return Levels(node, rail)


def allreduce(x: Array, two: Levels, op: str) -> Array:
    """Reduce `x` (n,) over all ranks in place; arguments as `ring.allreduce`; the same bytes on every rank.

    The array is cut into blocks, so that the node reduces one block while the network carries another: a block's ring is under
    way while the next block is reduced on the node, and its all-gather follows when the next block's ring has begun.

    Cost: 2n(N-1)/(N L) elements sent by each of the L ranks of N nodes; 16-bit values go as f32 and are rounded once.
    """
    count = -(-x.size * accumulation_dtype(x.dtype).itemsize // (SHARE_BYTES * two.node.size * two.rail.size))
    before: tuple[Iterator[Pending], Array, Array] | None = None
    for i, block in enumerate(ring.segments(x, max(1, count))):
        acc = ops.cast_into.unchecked(np.empty(block.shape, np.float32), block) if block.dtype.itemsize == 2 else block
        own = two.node.reduce_scatter(acc, "sum" if op == "mean" else op)
        running = ring.stream(own, two.rail.wire, op, two.node.size * two.rail.size, lane=i % 2)
        next(running, None)  # begun: its first messages are on their way
        if before is not None:
            _complete(*before, two)
        before = (running, acc, block)
    assert before is not None
    _complete(*before, two)
    return x


def _complete(running: Iterator[Pending], acc: Array, block: Array, two: Levels) -> None:
    for pending in running:
        pending.wait()
    two.node.allgather(acc)
    if acc is not block:
        ops.cast_into.unchecked(block, acc)
