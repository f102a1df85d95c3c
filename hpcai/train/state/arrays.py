"""The state that a rank keeps from step to step, as runs of flat arrays from which a checkpoint can be read on any mesh.

A whole array is flat, in the layout of the model on a single rank. Every rank's arrays are pieces of the whole array: some layers
(pipeline), a part of each array (tensor), a shard of a part (ZeRO). Each entry of the state says which ranks have it
(strategies.strategy.Kept), so that writing, reading and filling are one loop each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hpcai import arena
from hpcai.arena import Layout
from hpcai.checkpoint import format
from hpcai.checkpoint.boxes import Part
from hpcai.checkpoint.format import Laid, Opened
from hpcai.checkpoint.shards import Run
from hpcai.comm.algorithms import schedule
from hpcai.comm.communicator import Communicator
from hpcai.nn import models
from hpcai.nn.models import Model
from hpcai.reduce.combine import share
from hpcai.strategies.strategy import Kept
from hpcai.train.replica import Replica
from hpcai.xp import Array

SMALLEST_SHARD_BYTES = 1 << 20
"""Each data-parallel rank writes a chunk of the arrays that all have. Fewer ranks write if chunks would be smaller than this."""


def whole_layout(model: Model) -> Layout:
    """Return the layout of the whole model on a single rank, for any division of `model` among ranks."""
    return arena.layout({name: p.whole or p.shape for name, p in models.parameters(model).items()})


def laid(replica: Replica) -> Laid:
    """Return the layout of this rank's flat arrays."""
    by_number = dict(zip(replica.whole.numbers, models.parameters(replica.whole), strict=True))
    found = []
    own = zip(models.parameters(replica.model).values(), replica.model.numbers, replica.model.layout.slots, strict=True)
    for parameter, number, slot in own:
        shape = parameter.whole or parameter.shape
        cuts = (*parameter.part, *[slice(None)] * (len(shape) - len(parameter.part)))
        box = tuple(cut.indices(n)[:2] for cut, n in zip(cuts, shape, strict=True))
        found.append(Part(by_number[number], shape, box, slot.start))
    return Laid(replica.model.layout.size, tuple(found))


def number(replica: Replica) -> int:
    """Return the number of this rank's layout in the mesh. Ranks that differ only in dp have the same layout."""
    return replica.mesh.pp.rank * replica.mesh.tp.size + replica.mesh.tp.rank


def runs(replica: Replica) -> list[Run]:
    """Return the runs that this rank writes, without copies."""
    dp, kept, found = replica.mesh.dp, replica.kept(), list[Run]()
    shared_bytes = sum(one.array.nbytes for one in kept if one.array is not None and one.held == "all")
    writers = max(1, min(dp.size, shared_bytes // SMALLEST_SHARD_BYTES))
    for one in kept:
        array = one.array
        if array is None:
            continue
        if one.held == "all" and dp.rank < writers:
            chunk = schedule.split(array.size, writers, dp.rank)
            found.append(Run(one.name, chunk.start, array[chunk]))
        elif one.held == "shard":
            found += [Run(one.name, piece.flat.start, array[piece.shard]) for piece in one.pieces]
        elif one.held == "own":
            found.append(Run(f"{one.name}.{dp.rank}", one.start, array))
        elif one.held == "owner":
            chunk = share(array.size, dp.size, dp.rank)
            found.append(Run(one.name, one.start + chunk.start, array[chunk]))
        elif one.held == "common" and dp.rank == 0:
            found.append(Run(one.name, 0, array.reshape(-1)))
    return found


def counters(replica: Replica) -> list[Any]:
    """Return the counters of reducers that a manifest keeps beside their arrays, as JSON."""
    return [one.counter for one in replica.kept() if one.held == "counter" and one.name != "loss_scale"]


class Read(NamedTuple):
    """The data that one rank has read of a checkpoint.

    arrays: for each entry of the state an array, or None. owed: residuals of owners, flat; None without.
    """

    arrays: list[Array | None]
    owed: Array | None


def read(replica: Replica, source: Opened) -> Read:
    """Read from a checkpoint this rank's shards, its chunk of arrays that all ranks have, and its memory. The replica does not
    change. Raises: CheckpointError.
    """
    reader = _Reader(replica, source)
    return Read([reader.array(one) for one in replica.kept()], reader.flat("owed") if reader.remembers else None)


class _Reader:
    """Reads flat arrays for one rank, in its own layout."""

    def __init__(self, replica: Replica, source: Opened):
        self.replica, self.source, self.laid, self.here = replica, source, laid(replica), number(replica)
        self.writers = sum(name.startswith("memory.") for name in source.dtypes)
        self.remembers = self.writers > 0 and any(one.held == "own" for one in replica.kept())
        self._flat: dict[str, Array] = {}

    def array(self, one: Kept) -> Array | None:
        """Return the array with which to fill `one`; None if `one` stays as it is."""
        if one.held == "all":
            return self._pieces(one, [self.replica.mesh.dp.chunk(self.laid.size)])
        if one.held == "shard":
            return self._pieces(one, [piece.flat for piece in one.pieces])
        if one.held == "common":
            same = self.here < len(self.source.layouts) and self.source.layouts[self.here] == self.laid
            return self.source.whole(one.name, self.here) if same and one.name in self.source.names(self.here) else None
        if one.held in ("own", "owner") and self.remembers:
            assert one.array is not None
            flat = self._memory(one.name) if one.held == "own" else self.flat(one.name)
            return flat[one.start : one.start + one.array.size]
        return None

    def _pieces(self, one: Kept, wanted: list[slice]) -> Array:
        assert one.array is not None
        flat = np.zeros(self.laid.size, one.array.dtype)  # only pages that are filled take memory
        format.fill(flat, one.name, self.laid, wanted, self.source, like=self.here)
        return np.concatenate([flat[where] for where in wanted])

    def _memory(self, name: str) -> Array:
        """Return this rank's own memory if the number of ranks is the same. Otherwise return the mean of all ranks' memories,
        which keeps the total residual of the mean gradient.
        """
        dp = self.replica.mesh.dp
        if self.writers == dp.size:
            return self.flat(f"{name}.{dp.rank}")
        if name not in self._flat:
            total = np.zeros(self.laid.size)
            for rank in range(self.writers):
                total += self._read(f"{name}.{rank}")
            self._flat[name] = (total / self.writers).astype(np.float32)
        return self._flat[name]

    def flat(self, name: str) -> Array:
        """Return a flat array assembled from the runs that ranks wrote; zero elsewhere."""
        if name not in self._flat:
            self._flat[name] = self._read(name)
        return self._flat[name]

    def _read(self, name: str) -> Array:
        made = np.zeros(self.laid.size, np.float32)
        if name in self.source.dtypes:
            format.fill(made, name, self.laid, [slice(0, made.size)], self.source, partial=True, like=self.here)
        return made


def restore(replica: Replica, found: Read, counted: list[Any], loss_scale: Any) -> None:
    """Fill this rank's state from the data that `read` returned, and from counters. Collective among data-parallel ranks."""
    dp, kept = replica.mesh.dp, replica.kept()
    owners = {one.start for one in kept if one.held == "owner"}
    for one, array in zip(kept, found.arrays, strict=True):
        if array is not None and one.array is not None:
            _fill(one, array, dp)
        if one.held == "all" and one.array is not None:
            dp.allgather(one.array)
        elif one.held == "own" and found.owed is not None and one.array is not None and one.start not in owners:
            np.add(one.array, found.owed[one.start : one.start + one.array.size], out=one.array)  # each adds the owners' residual
    put_counters(kept, counted, loss_scale)
    replica.strategy.restored(replica.state)


def _fill(one: Kept, array: Array, dp: Communicator) -> None:
    assert one.array is not None
    if one.held == "all":
        one.array[dp.chunk(one.array.size)] = array
    elif one.held == "owner":
        own = share(array.size, dp.size, dp.rank)
        one.array[own] = array[own]
    elif one.held == "shard":
        at = 0
        for piece in one.pieces:
            size = piece.shard.stop - piece.shard.start
            one.array[piece.shard] = array[at : at + size]
            at += size
    elif one.array.size == array.size:
        one.array[...] = array.reshape(one.array.shape)


def put_counters(kept: list[Kept], counted: list[Any], loss_scale: Any) -> None:
    """Set the counters from those of a run of the same kind. Reducer i gets counter i, or the last one if there are fewer."""
    reducers = [one for one in kept if one.held == "counter" and one.name != "loss_scale"]
    for one, value in [*zip(reducers, _stretched(counted, len(reducers)), strict=False)]:
        assert one.put is not None
        one.put(value)
    for one in kept:
        if one.name == "loss_scale" and one.put is not None:
            one.put(loss_scale)


def _stretched(values: list[Any], count: int) -> list[Any]:
    return [values[min(i, len(values) - 1)] for i in range(count)] if values else []
