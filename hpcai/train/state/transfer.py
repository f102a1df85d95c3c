"""A replica among other ranks, filled from one before or from a peer's."""

from __future__ import annotations

import dataclasses

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.parallel import zero
from hpcai.train.options.options import Options
from hpcai.train.replica import Replica, publish
from hpcai.train.state import residuals
from hpcai.xp import Array


def carry_over(old: Replica, fresh: Replica, alive: set[int]) -> None:
    """Fill a replica among other ranks from the one before. Collective."""
    for name, array in {"params": fresh.params, **fresh.state}.items():
        kept = old.params if name == "params" else old.state[name]
        if not old.zero:
            array[:] = kept
            continue
        whole = _whole(old, name, kept, alive, fresh.mesh.dp)
        array[:] = whole if name == "params" else zero.scatter(whole, fresh.owned)
    residuals.carry_over(old, fresh)
    if fresh.half is not None and old.half is not None:
        fresh.half.scale, fresh.half.good = old.half.scale, old.half.good
        publish(fresh)
    if fresh.backup is not None:
        fresh.backup.renew(fresh.state)
    fresh.votes, fresh.decided, fresh.updated = old.votes, old.decided, True


def _whole(old: Replica, name: str, kept: Array, alive: set[int], comm: Communicator) -> Array:
    """A flat array from the shards of the ranks that live, and the copies that they have of others. Collective.

    Added as integers, so that every bit stays: each element is zero on all ranks but one.
    """
    whole = np.zeros(old.model.layout.size, kept.dtype)
    for piece in old.owned:
        whole[piece.flat] = kept[piece.flat if name == "params" else piece.shard]
    if old.backup is not None and old.backup.left not in alive:
        for piece in old.backup.owned:
            whole[piece.flat] = old.params[piece.flat] if name == "params" else old.backup.state[name][piece.shard]
    add_bits(whole, comm)
    return whole


def add_bits(whole: Array, comm: Communicator) -> None:
    """Sum arrays of which each element is zero on all ranks but one, so that every bit stays. Collective."""
    comm.allreduce(whole.view(np.int32 if whole.itemsize == 4 else np.int64))


def equal(fresh: Replica) -> None:
    """Give new ranks what all others have alike. Collective."""
    dp = fresh.mesh.dp
    if not fresh.zero:
        for array in (fresh.params, *fresh.state.values()):
            dp.broadcast(array)
    if fresh.half is not None:
        fresh.half.scale, fresh.half.good = dp.allgather_object((fresh.half.scale, fresh.half.good))[0]
        publish(fresh)
    residuals.equal(fresh)


def unmeshed(options: Options) -> Options:
    """Options for any number of ranks."""
    return dataclasses.replace(options, mesh="")
