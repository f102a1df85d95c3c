"""Homomorphic int8: ranks agree on scales first, so that any all-reduce can sum the integer levels; the sum is decoded once.

Sources: Li et al., NSDI 2024, arXiv:2302.08545 (sums of compressed gradients); Mishchenko et al., arXiv:2102.08374 (integer
sums). Here each block of 256 elements has a scale, and four lanes of 8 bits are summed as one i32 (see ops/integers.py).
"""

from __future__ import annotations

import numpy as np

from hpcai.comm.collectives import Collectives
from hpcai.ops import integers
from hpcai.ops.blocks import block_count
from hpcai.ops.door import takes
from hpcai.reduce.reducer import Reduced, Reducer, State
from hpcai.xp import Array

SMALLEST_SCALE = 2.0**-126


def integer_sum() -> Reducer:
    """Return a reducer of levels -limit..limit; a block's largest magnitude on any rank has the level limit = 127 // P.

    The sum is exact, with the same bits for any topology: only each rank's own rounding is lost, and stays in its residual. From
    32 ranks on, where 8 bits would leave at most 3 levels on either side, lanes have 16 bits.
    Cost: 2(P-1)/P (n + n/64) bytes sent per rank.
    """

    @takes(x="f32 n", writes="x")
    def reduce(x: Array, comm: Collectives, state: State) -> Reduced:
        return keep(x, np.zeros_like(x), comm, state)

    @takes(x="f32 n", memory="f32 n", writes="x memory")
    def keep(x: Array, memory: Array, comm: Collectives, state: State) -> Reduced:
        limit, lane = lanes_for(comm.size)
        scales = integers.block_tops_into(np.empty(block_count(x.size), np.float32), x, memory)
        comm.allreduce(scales, "max")
        scales /= np.float32(limit)
        scales[scales < SMALLEST_SCALE] = 0
        words = np.zeros(-(-x.size * lane.itemsize // 4), np.int32)
        lanes = words.view(lane)[: x.size]
        integers.encode_lanes_into(lanes, scales, memory, limit)
        comm.allreduce(words, "sum")
        return Reduced(integers.decode_lanes_into(x, lanes, scales, limit, comm.size), memory, state)

    return Reducer("int8sum", lambda x: None, reduce, keep)


def lanes_for(ranks: int) -> tuple[int, np.dtype]:
    """Return (limit, lane dtype): the sum of `ranks` levels of 0..2 limit fits the lane. Raises: ValueError above 32,767 ranks.

    >>> lanes_for(2), lanes_for(31), lanes_for(32)
    ((63, dtype('uint8')), (4, dtype('uint8')), (1023, dtype('uint16')))
    """
    if ranks < 32:
        return 127 // ranks, np.dtype(np.uint8)
    if ranks > 32767:
        raise ValueError(f"int8sum supports up to 32,767 ranks, got {ranks}")
    return 32767 // ranks, np.dtype(np.uint16)
