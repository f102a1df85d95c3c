"""All-to-all: at step s every rank sends to the rank s places to its right and receives from the rank s places to its left."""

from __future__ import annotations

import numpy as np

from hpcai.comm.algorithms import ring
from hpcai.comm.wire import Wire
from hpcai.xp import Array


def alltoall(x: Array, wire: Wire) -> Array:
    """Row r of `x` (P, k) goes to rank r and is replaced by what rank r sent here, in place.

    Any dtype. Cost: (P-1)k elements sent per rank, in messages of `ring.SEGMENT_BYTES`; scratch: one more `x`.
    """
    rows = x.reshape(wire.size, -1).view(np.uint8)
    came = np.empty_like(rows)
    came[wire.rank] = rows[wire.rank]
    for step in range(1, wire.size):
        to, source = (wire.rank + step) % wire.size, (wire.rank - step) % wire.size
        pending = [wire.receive(piece, source) for piece in _messages(came[source])]
        pending += [wire.send(piece, to) for piece in _messages(rows[to])]
        for one in pending:
            one.wait()
    rows[...] = came
    return x


def _messages(row: Array) -> list[Array]:
    return ring.segments(row, max(1, -(-row.nbytes // ring.SEGMENT_BYTES)))
