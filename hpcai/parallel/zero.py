"""The placement of parameters, gradients and optimizer state among data-parallel ranks: replicated, or in shards.

    stage 0  every rank has everything                                            bytes a rank, N elements, P ranks, f32, Adam
    stage 1  optimizer state in shards: reduce-scatter, update, all-gather        4N + 4N + 8N/P
    stage 2  gradients too: a unit is reduced as soon as backward has left it     4N + 4N/P + 8N/P + a unit
    stage 3  parameters too: a unit is gathered when forward or backward needs it 4N/P + 4N/P + 8N/P + two units

A *unit* is a slice of the flat layout that one collective carries; a rank's shard is its chunk of every unit. Source: Rajbhandari
et al., arXiv:1910.02054. Cost: stages 1 and 2 send the bytes of an all-reduce; stage 3 sends 1.5 times as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hpcai import arena, ops
from hpcai.comm.communicator import Communicator
from hpcai.nn.layers import Params
from hpcai.nn.models import Model, per_layer
from hpcai.xp import Array


class Piece(NamedTuple):
    """A run of elements that one rank updates: its slices in the flat layout and in the shard."""

    flat: slice
    shard: slice


def pieces(units: Sequence[slice], comm: Communicator, rank: int | None = None) -> list[Piece]:
    """Return the chunk of every unit that `rank` (default: this rank) updates."""
    found, at = [], 0
    for unit in units:
        chunk = comm.chunk(unit.stop - unit.start, rank)
        size = chunk.stop - chunk.start
        found.append(Piece(slice(unit.start + chunk.start, unit.start + chunk.stop), slice(at, at + size)))
        at += size
    return found


def scatter(flat: Array, owned: Sequence[Piece]) -> Array:
    """Return a copy of this rank's shard of a flat array."""
    return np.concatenate([flat[piece.flat] for piece in owned])


def gather(shard: Array, units: Sequence[slice], owned: Sequence[Piece], comm: Communicator, size: int) -> Array:
    """Return the flat array (size,) from the shards of all ranks. Collective."""
    flat = np.zeros(size, shard.dtype)
    for unit, piece in zip(units, owned, strict=True):
        flat[piece.flat] = shard[piece.shard]
        comm.allgather(flat[unit])
    return flat


def memory_in_theory(n: int, ranks: int, stage: int, itemsize: int, states: int, unit_bytes: int = 0) -> float:
    """Return the bytes that a rank keeps of a model: n elements, `states` arrays of optimizer state, units of `unit_bytes`.

    >>> [memory_in_theory(1000, 4, stage, 4, 2) for stage in range(4)]
    [16000.0, 10000.0, 7000.0, 4000.0]
    """
    parts = [n / ranks if stage >= least else n for least in (3, 2)]
    return float(itemsize) * (sum(parts) + states * (n / ranks if stage else n)) + max(0, stage - 1) * unit_bytes


class WholeGradients:
    """Gradients of all layers in one flat array. A gradient that is written again before the next `begin` is added."""

    def __init__(self, model: Model, flat: Array):
        self.model, self.flat = model, flat
        self.views = per_layer(model, flat)
        self.written: set[str] = set()
        self._scratch = np.empty(0, flat.dtype)
        self._adding: list[tuple[Array, Array]] = []

    def begin(self) -> None:
        """Start a step: the next write of each gradient assigns it."""
        self.written.clear()

    def __getitem__(self, i: int) -> Params:
        """Return the arrays into which layer i's gradients are written."""
        names = {
            key: f"{self.model.layers[i].shares_parameters_with or self.model.layers[i].name}.{key}" for key in self.views[i]
        }
        again = [key for key in names if names[key] in self.written]
        self.written.update(names.values())
        if not again:
            return self.views[i]
        into, at = dict(self.views[i]), 0
        needed = sum(into[key].size for key in again)
        if self._scratch.size < needed:
            self._scratch = np.empty(needed, self.flat.dtype)
        for key in again:
            view = self.views[i][key]
            into[key] = self._scratch[at : at + view.size].reshape(view.shape)
            self._adding.append((view, into[key]))
            at += view.size
        return into

    def filled(self, i: int) -> None:
        """Note that layer i's gradients are written, and add those that were written before too."""
        for view, more in self._adding:
            np.add(view, more, out=view)
        self._adding.clear()

    def finish(self) -> None:
        """Do nothing: the gradients are complete."""


class ShardedGradients:
    """This rank's shard of the gradients, summed over ranks. Layers write into one unit, which is reduced before the next."""

    def __init__(self, model: Model, units: Sequence[slice], comm: Communicator, dtype: np.dtype, sent: np.dtype):
        """dtype: of arithmetic. sent: the dtype in which units travel."""
        self.model, self.units, self.comm = model, units, comm
        self.owned = pieces(units, comm)
        self.flat = np.zeros(self.owned[-1].shard.stop if self.owned else 0, dtype)
        self.sent, self.working = _buffers(units, comm, dtype, sent)
        self.views, self.unit_of = _in_units(model, units, self.working)
        self._current, self._visited = -1, set[str]()

    def begin(self) -> None:
        """Start a step."""
        self.flat[:] = 0

    def __getitem__(self, i: int) -> Params:
        """Return the arrays into which layer i's gradients are written. Collective if it begins another unit."""
        unit = self.unit_of[i]
        names = {f"{self.model.layers[i].shares_parameters_with or self.model.layers[i].name}.{key}" for key in self.views[i]}
        if unit != self._current or names & self._visited:
            self.finish()
            self._current = unit
            self.working[:] = 0
        self._visited |= names
        return self.views[i]

    def filled(self, i: int) -> None:
        """Do nothing: layer i's gradients are reduced with their unit."""

    def finish(self) -> None:
        """Reduce the unit that was written last. Collective."""
        if self._current >= 0:
            unit = self.units[self._current]
            sent = self.sent[: unit.stop - unit.start]
            if self.sent is not self.working:
                ops.cast_into(sent, self.working[: sent.size])
            chunk = self.comm.reduce_scatter(sent)
            mine = self.flat[self.owned[self._current].shard]
            np.add(mine, chunk.astype(mine.dtype, copy=False), out=mine)
        self._current, self._visited = -1, set()


class GatheredParameters(Sequence[Params]):
    """Parameters of which this rank keeps a shard. Access to a layer's parameters gathers the unit that contains them."""

    def __init__(self, model: Model, units: Sequence[slice], comm: Communicator, flat: Array, sent: np.dtype):
        """flat: initial values, in the dtype of arithmetic. sent: the dtype in which parameters are kept and travel."""
        self.units, self.comm = units, comm
        self.owned = pieces(units, comm)
        self.shard = scatter(flat, self.owned).astype(sent, copy=False)
        self.sent, self.working = _buffers(units, comm, flat.dtype, sent)
        self.views, self.unit_of = _in_units(model, units, self.working)
        self._current = -1

    def forget(self) -> None:
        """Mark the gathered unit as out of date, since the shard has changed."""
        self._current = -1

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, i):
        """Return layer i's parameters, valid until access to another unit. Collective if it begins another unit."""
        unit = self.unit_of[i]
        if unit not in (-1, self._current):
            where, piece = self.units[unit], self.owned[unit]
            whole = self.sent[: where.stop - where.start]
            whole[piece.flat.start - where.start : piece.flat.stop - where.start] = self.shard[piece.shard]
            self.comm.allgather(whole)
            if self.sent is not self.working:
                ops.cast_into(self.working[: whole.size], whole)
            self._current = unit
        return self.views[i]


def _buffers(units: Sequence[slice], comm: Communicator, dtype: np.dtype, sent: np.dtype) -> tuple[Array, Array]:
    """Return memory for the longest unit, as it travels and for arithmetic; the same array twice if the dtypes are equal."""
    size = max((unit.stop - unit.start for unit in units), default=0)
    travelling = comm.symmetric_empty(size, sent)
    return travelling, travelling if sent == dtype else np.empty(size, dtype)


def units(model: Model, itemsize: int, unit_bytes: int) -> list[slice]:
    """Return slices of the flat layout, of about `unit_bytes` each; no slice cuts a layer."""
    owners = {
        f"{layer.name}.{key}": layer.name
        for layer in model.layers
        if not layer.shares_parameters_with
        for key in layer.parameters
    }
    return arena.buckets(model.layout, itemsize, unit_bytes, whole=owners.__getitem__)


def _in_units(model: Model, units: Sequence[slice], working: Array) -> tuple[list[Params], list[int]]:
    """Return for each layer the views of its arrays in a buffer for one unit, and the index of its unit (-1: no parameters)."""
    places = {slot.name: slot for slot in model.layout.slots}
    views: list[Params] = []
    unit_of = []
    for layer in model.layers:
        slots = {key: places[f"{layer.shares_parameters_with or layer.name}.{key}"] for key in layer.parameters}
        inside = next((u for u, unit in enumerate(units) for s in slots.values() if unit.start <= s.start < unit.stop), -1)
        begin = units[inside].start
        views.append({k: working[s.start - begin : s.stop - begin].reshape(s.shape) for k, s in slots.items()})
        unit_of.append(inside)
    return views, unit_of
