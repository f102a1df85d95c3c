"""A replica among other ranks, filled from this rank's former replica or from other ranks, in one loop over the state.

Residuals of compression are kept. The mean divides by the number of ranks, so a residual is scaled by the ratio of the new number
of ranks to the old one. The residual of a lost rank is lost.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.data.dataset import Dataset
from hpcai.reduce.combine import share
from hpcai.strategies.strategy import Kept
from hpcai.train.options.options import Options
from hpcai.train.replica import Decided, Replica, new_replica
from hpcai.xp import Array


def rebuilt(
    options: Options, dataset: Dataset, comm: Communicator, old: Replica | None, alive: set[int], decided: Decided, joined: bool
) -> Replica:
    """Return a replica among the ranks of `comm`, at the same step. Collective.

    old: this rank's former replica; None on a rank that joins. alive: ranks of `old` that are still here, the first in `comm`.
    decided: the last decided step. joined: whether any ranks join. Raises: RankFailed.
    """
    fresh = new_replica(dataclasses.replace(options, mesh=""), dataset, comm)
    carry_over(old, fresh, alive)
    if joined:
        equal(fresh)
    fresh.strategy.restored(fresh.state)
    fresh.decided, fresh.updated = decided, True
    if old is not None:
        fresh.votes = old.votes
    return fresh


def carry_over(old: Replica | None, fresh: Replica, alive: set[int]) -> None:
    """Fill the state of a fresh replica from this rank's former replica, if any, and from other ranks. Collective."""
    dp, before = fresh.mesh.dp, [] if old is None else old.kept()
    by_name = {one.name: one for one in before if one.held in ("all", "shard", "common", "counter")}
    owed = _owed(old, dp.size)
    same = old is not None and old.buckets == fresh.buckets
    for one in fresh.kept():
        known = by_name.get(one.name)
        if one.held == "shard":
            _cut_anew(one, _whole(one, fresh.model.layout.size, before, alive, dp))
        elif one.held == "all" and known is not None and one.array is not None:
            one.array[:] = known.array
        elif one.held == "own" and owed is not None and one.array is not None:
            one.array[:] = owed[one.start : one.start + one.array.size]
        elif one.held == "common" and same and known is not None and one.array is not None and known.array is not None:
            if one.array.shape == known.array.shape:
                one.array[...] = known.array
        elif one.held == "counter" and one.put is not None:
            first = by_name.get("reducer.0") if one.name.startswith("reducer.") and not same else known
            if first is not None:
                one.put(first.counter)


def _owed(old: Replica | None, ranks: int) -> Array | None:
    """Return this rank's residual, also as an owner, flat, scaled for `ranks` ranks; None if the rank keeps none."""
    if old is None or not (remembered := [one for one in old.kept() if one.held in ("own", "owner")]):
        return None
    dp, flat = old.mesh.dp, np.zeros(old.model.layout.size, np.float32)
    for one in remembered:
        assert one.array is not None
        part = flat[one.start : one.start + one.array.size]
        if one.held == "own":
            part[:] = one.array
        else:
            own = share(part.size, dp.size, dp.rank)
            part[own] += np.float32(dp.size) * one.array[own]
    flat *= np.float32(ranks / dp.size)
    return flat


def _whole(one: Kept, size: int, before: list[Kept], alive: set[int], comm: Communicator) -> Array:
    """Return a flat array assembled from the shards of the living ranks and their copies of lost shards. Collective.

    The arrays are summed as integers, which keeps every bit: each element is zero on all ranks but one.
    """
    assert one.array is not None
    whole = np.zeros(size, one.array.dtype)
    for known in before:
        if known.name == one.name and (known.held == "shard" or (known.held == "copy" and known.of not in alive)):
            for piece in known.pieces:
                assert known.array is not None
                whole[piece.flat] = known.array[piece.shard]
    comm.allreduce(whole.view(np.int32 if whole.itemsize == 4 else np.int64))
    return whole


def _cut_anew(one: Kept, whole: Array) -> None:
    assert one.array is not None
    for piece in one.pieces:
        one.array[piece.shard] = whole[piece.flat]


def equal(fresh: Replica) -> None:
    """Send the state that all ranks have alike from rank 0 to the new ranks. Collective."""
    dp, kept = fresh.mesh.dp, fresh.kept()
    for one in kept:
        if one.held in ("all", "common") and one.array is not None:
            dp.broadcast(one.array)
    counters = dp.allgather_object({one.name: one.counter for one in kept if one.held == "counter"})[0]
    for one in kept:
        if one.put is not None:
            one.put(counters[one.name])
