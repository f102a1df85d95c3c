"""What a rank keeps from step to step, as runs of flat arrays that a checkpoint can put together again on any mesh.

A whole array is flat, in the layout of the model on a single rank. Every rank's arrays are pieces of it: some of the layers
(pipeline), a part of each array (tensor), a shard of that (ZeRO).
"""

from __future__ import annotations

import numpy as np

from hpcai import arena
from hpcai.arena import Layout
from hpcai.checkpoint import format
from hpcai.checkpoint.boxes import Part
from hpcai.checkpoint.format import Laid, Opened
from hpcai.checkpoint.shards import Run
from hpcai.comm.algorithms import schedule
from hpcai.nn import models
from hpcai.nn.models import Model
from hpcai.parallel.zero import GatheredParameters
from hpcai.train.replica import Replica, publish
from hpcai.xp import Array

SMALLEST_SHARD_BYTES = 1 << 20
"""Of arrays that all data-parallel ranks have, each writes a chunk, but no less than this: else fewer ranks write."""


def whole_layout(model: Model) -> Layout:
    """The layout of a model, however it is shared out, on a single rank."""
    return arena.layout({name: p.whole or p.shape for name, p in models.parameters(model).items()})


def laid(mine: Replica) -> Laid:
    """How this rank's flat arrays are laid out."""
    by_number = dict(zip(mine.whole.numbers, models.parameters(mine.whole), strict=True))
    found = []
    own = zip(models.parameters(mine.model).values(), mine.model.numbers, mine.model.layout.slots, strict=True)
    for parameter, number, slot in own:
        shape = parameter.whole or parameter.shape
        cuts = (*parameter.part, *[slice(None)] * (len(shape) - len(parameter.part)))
        box = tuple(cut.indices(n)[:2] for cut, n in zip(cuts, shape, strict=True))
        found.append(Part(by_number[number], shape, box, slot.start))
    return Laid(mine.model.layout.size, tuple(found))


def number(mine: Replica) -> int:
    """This rank's layout among the mesh's: ranks that differ along dp alone have the same."""
    return mine.mesh.pp.rank * mine.mesh.tp.size + mine.mesh.tp.rank


def arrays_of(mine: Replica) -> dict[str, Array]:
    """What this rank keeps from step to step: parameters and optimizer state, whole or in shards."""
    return {"params": mine.params} | {f"optimizer.{name}": array for name, array in mine.state.items()}


def runs(mine: Replica) -> list[Run]:
    """What this rank writes of parameters and optimizer state: its shard, and its chunk of what all have. No copies."""
    arrays, found = arrays_of(mine), []
    shared_bytes = sum(array.nbytes for name, array in arrays.items() if not _sharded(mine, name))
    writers = max(1, min(mine.mesh.dp.size, shared_bytes // SMALLEST_SHARD_BYTES))
    for name, array in arrays.items():
        if _sharded(mine, name):
            found += [Run(name, piece.flat.start, array[piece.shard]) for piece in mine.owned]
        elif mine.mesh.dp.rank < writers:
            own = schedule.split(array.size, writers, mine.mesh.dp.rank)
            found.append(Run(name, own.start, array[own]))
    return found


def read(mine: Replica, source: Opened) -> dict[str, Array]:
    """From a checkpoint what this rank must have of parameters and optimizer state: its shards, and its chunks of what all have,
    which `restore` gathers. Nothing of `mine` changes. Raises: CheckpointError.
    """
    own, found = laid(mine), {}
    for name, array in arrays_of(mine).items():
        flat = np.zeros(own.size, array.dtype)  # of which only the pages that are filled take memory
        wanted = _wanted(mine, name)
        format.fill(flat, name, own, wanted, source, like=number(mine))
        found[name] = np.concatenate([flat[one] for one in wanted])
    return found


def restore(mine: Replica, given: dict[str, Array]) -> None:
    """Fill this rank's arrays from what `read` gave every rank. Collective among data-parallel ranks."""
    for name, array in arrays_of(mine).items():
        if _sharded(mine, name):
            array[...] = given[name]
        else:
            array[mine.mesh.dp.chunk(array.size)] = given[name]
            mine.mesh.dp.allgather(array)
    if mine.half is not None:
        publish(mine)
    elif isinstance(mine.weights, GatheredParameters):
        mine.weights.forget()


def _wanted(mine: Replica, name: str) -> list[slice]:
    return [piece.flat for piece in mine.owned] if _sharded(mine, name) else [mine.mesh.dp.chunk(mine.model.layout.size)]


def _sharded(mine: Replica, name: str) -> bool:
    return mine.zero > (2 if name == "params" and mine.half is None else 0)
