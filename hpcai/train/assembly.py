"""The whole model's arrays from the parts that ranks have, and back: what makes a checkpoint fit any mesh.

A whole array is flat, in the layout of the model on a single rank. Every rank's arrays are pieces of it: some of the layers
(pipeline), a part of each array (tensor), a shard of that (ZeRO).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpcai import arena
from hpcai.arena import Layout
from hpcai.nn import models
from hpcai.nn.models import Model
from hpcai.parallel import zero
from hpcai.train import precision
from hpcai.train.replica import Replica
from hpcai.xp import Array


class Part(NamedTuple):
    """An array of this rank's layout: the whole array's name and shape, which part of it this is, and where it lies here."""

    name: str
    shape: tuple[int, ...]
    part: tuple[slice, ...]
    here: slice


def whole_layout(model: Model) -> Layout:
    """The layout of a model, however it is shared out, on a single rank."""
    return arena.layout({name: p.whole or p.shape for name, p in models.parameters(model).items()})


def collect(mine: Replica, arrays: dict[str, Array]) -> dict[str, Array]:
    """Whole arrays, on rank 0 of the world; nothing on others. Collective. arrays: this rank's, such as `arrays_of(mine)`.

    Cost: every part is sent to rank 0 once.
    """
    flat = {name: _unsharded(mine, name, array) for name, array in arrays.items()}
    if mine.mesh.only_dp:
        return flat if mine.mesh.world.rank == 0 else {}
    world, first = mine.mesh.world, mine.mesh.dp.rank == 0
    known = world.exchange((parts(mine), mine.model.layout.size) if first else None)
    where = whole_layout(mine.whole)
    found: dict[str, Array] = {}
    for name, array in flat.items():
        if world.rank:
            if first:
                for piece in _pieces(array):
                    world.send(piece, 0).wait()
            continue
        made = found[name] = np.zeros(where.size, array.dtype)
        views = arena.views(made, where)
        for rank, told in enumerate(known):
            if told is None:
                continue
            their = array
            if rank:
                their = np.empty(told[1], array.dtype)
                for piece in _pieces(their):
                    world.receive(piece, rank).wait()
            for part in told[0]:
                whole = views[part.name]
                whole.reshape(part.shape)[part.part] = their[part.here].reshape(whole.reshape(part.shape)[part.part].shape)
    return found


def _pieces(array: Array) -> list[Array]:
    """Views of at most 2**30 bytes, as much as a message carries."""
    step = (1 << 30) // array.itemsize
    return [array[start : start + step] for start in range(0, array.size, step)]


def distribute(mine: Replica, whole: dict[str, Array]) -> None:
    """Fill this rank's arrays from whole ones, which rank 0 has. Collective. Cost: a broadcast of each."""
    where, dtype = whole_layout(mine.whole), mine.params.dtype
    for name, array in arrays_of(mine).items():
        given = np.require(whole[name], requirements=["C", "W"]) if whole else np.empty(where.size, dtype)
        views = arena.views(mine.mesh.world.broadcast(given), where)
        flat = np.zeros(mine.model.layout.size, dtype)
        for part in parts(mine):
            flat[part.here] = views[part.name].reshape(part.shape)[part.part].reshape(-1)
        array[...] = zero.scatter(flat, mine.owned) if _sharded(mine, name) else flat
    if mine.half is not None:
        precision.publish(mine)


def arrays_of(mine: Replica) -> dict[str, Array]:
    """What this rank keeps from step to step: parameters and optimizer state, whole or in shards."""
    return {"params": mine.params} | {f"optimizer.{name}": array for name, array in mine.state.items()}


def parts(mine: Replica) -> list[Part]:
    """Of which arrays of the whole model this rank has what."""
    by_number = dict(zip(mine.whole.numbers, models.parameters(mine.whole), strict=True))
    found = []
    own = zip(models.parameters(mine.model).values(), mine.model.numbers, mine.model.layout.slots, strict=True)
    for parameter, number, slot in own:
        found.append(Part(by_number[number], parameter.whole or parameter.shape, parameter.part, slice(slot.start, slot.stop)))
    return found


def _sharded(mine: Replica, name: str) -> bool:
    return mine.zero > (2 if name == "params" and mine.half is None else 0)


def _unsharded(mine: Replica, name: str, array: Array) -> Array:
    if not _sharded(mine, name):
        return array
    return zero.gather(array, mine.units, mine.owned, mine.mesh.dp, mine.model.layout.size)
