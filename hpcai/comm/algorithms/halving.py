"""Recursive halving and doubling: as many bytes as the ring in 2 log2 P messages instead of 2(P-1), for arrays of medium size.

In each exchange a rank sends half of its part to a partner, and folds the partner's values into the half that it keeps. After
log2 P exchanges it owns 1/P of the array, reduced. The same exchanges backwards spread the results. If P is no power of two, the
ranks beyond the largest power send their arrays to a partner first, and receive the result at the end.

Source: Rabenseifner, "Optimization of Collective Reduction Operations", ICCS 2004, doi:10.1007/978-3-540-24685-5_1.
"""

from __future__ import annotations

import numpy as np

from hpcai import ops
from hpcai.comm.algorithms import ring, schedule
from hpcai.comm.wire import Wire
from hpcai.xp import Array, accumulation_dtype

MESSAGE_BYTES = 1 << 20
"""Longer exchanges are cut into messages of at most this length, so that folds overlap with transfers."""


def allreduce(x: Array, wire: Wire, op: str = "sum") -> Array:
    """Reduce `x` (n,) over all ranks in place; arguments as `ring.allreduce`; the same bytes on every rank.

    Cost: 2 log2 P messages and 2n(P-1)/P elements sent per rank; if P is no power of two, n more elements each way on some ranks.
    """
    for block in ring.blocks(x):
        _allreduce_block(block, wire, op)
    return x


def _allreduce_block(x: Array, wire: Wire, op: str) -> None:
    power = 1 << (wire.size.bit_length() - 1)
    narrow = accumulation_dtype(x.dtype) != x.dtype
    acc = ops.cast_into.unchecked(np.empty(x.shape, np.float32), x) if narrow else x
    verb = "sum" if op == "mean" else op

    if wire.rank >= power:
        _exchange(wire, wire.rank - power, acc, None, None, verb)
        _exchange(wire, wire.rank - power, None, x, None, verb)
        return
    beyond = wire.rank + power if wire.rank + power < wire.size else None
    if beyond is not None:
        _exchange(wire, beyond, None, None, acc, verb)

    steps = schedule.halving(wire.rank, power)
    for step in steps:
        _exchange(wire, step.partner, _part(acc, power, step.give), None, _part(acc, power, step.keep), verb)
    own = steps[-1].keep
    if op == "mean":
        ops.divide_into.unchecked(_part(acc, power, own), wire.size)
    if narrow:
        ops.cast_into.unchecked(_part(x, power, own), _part(acc, power, own))
    for step in reversed(steps):
        _exchange(wire, step.partner, _part(x, power, step.keep), _part(x, power, step.give), None, verb)

    if beyond is not None:
        _exchange(wire, beyond, x, None, None, verb)


def _part(x: Array, parts: int, chunks: range) -> Array:
    return x[schedule.split(x.size, parts, chunks[0]).start : schedule.split(x.size, parts, chunks[-1]).stop]


def _exchange(wire: Wire, partner: int, give: Array | None, take: Array | None, fold: Array | None, op: str) -> None:
    """Send `give`; receive into `take`, or receive and fold into `fold`."""
    came = None if fold is None else np.empty_like(fold)
    receives = [wire.receive(piece, partner) for x in (take, came) if x is not None for piece in _messages(x)]
    sends = [wire.send(piece, partner) for piece in _messages(give)] if give is not None else []
    for i, pending in enumerate(receives):
        pending.wait()
        if fold is not None and came is not None:
            ops.fold_into.unchecked(_messages(fold)[i], _messages(came)[i], op)
    for pending in sends:
        pending.wait()


def _messages(x: Array) -> list[Array]:
    return ring.segments(x, max(1, -(-x.nbytes // MESSAGE_BYTES)))
