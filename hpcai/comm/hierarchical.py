"""Across nodes: reduce-scatter on each node, a ring along each *rail*, all-gather on each node.

A rail is the ranks with the same place on their nodes. Each rail reduces its share of the array, so every local rank drives
the network with 1/L of the elements, and each element crosses it only 2(N-1)/N times, however many ranks a node has.

Source: the two-level scheme of Jia et al., arXiv:1807.11205, with reduce-scatter and all-gather in place of its master rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hpcai import ops
from hpcai.comm import ring
from hpcai.xp import Array, accumulation_dtype

if TYPE_CHECKING:
    from hpcai.comm.communicator import Communicator


class Levels(NamedTuple):
    """The ranks on this node, and those with this rank's place on every node."""

    node: Communicator
    rail: Communicator


def levels(comm: Communicator) -> Levels | None:
    """The two levels of `comm`, or None where a node has one rank only or nodes have different numbers. Collective."""
    node = comm.node
    if len(set(comm.exchange(node.size))) > 1 or node.size in (1, comm.size):
        return None
    rail = comm.split(node.rank)
    assert rail is not None
    return Levels(node, rail)


def allreduce(x: Array, two: Levels, op: str) -> Array:
    """Reduce `x` (n,) over all ranks in place; arguments as `ring.allreduce`; the same bytes on every rank.

    Cost: 2n(N-1)/(N L) elements sent by each of the L ranks of N nodes; 16-bit values go as f32 and are rounded once.
    """
    fold = "sum" if op == "mean" else op
    for block in ring.blocks(x):
        narrow = accumulation_dtype(block.dtype) != block.dtype
        acc = ops.cast_into(np.empty(block.shape, np.float32), block) if narrow else block
        own = two.node.reduce_scatter(acc, fold)
        if own.size and two.rail.size > 1:
            ring.allreduce(own, two.rail.wire, fold)
        if op == "mean":
            ops.divide_into(own, two.node.size * two.rail.size)
        two.node.allgather(acc)
        if narrow:
            ops.cast_into(block, acc)
    return x
