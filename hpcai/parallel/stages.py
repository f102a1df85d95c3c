"""The cut of a model into pipeline stages, between groups of layers, such that the slowest stage is as fast as possible."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from time import perf_counter
from typing import NamedTuple

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.errors import UsageError, counted
from hpcai.nn import models
from hpcai.nn.models import Model
from hpcai.parallel.mesh import Mesh
from hpcai.xp import Array

REPEATS = 3


class Group(NamedTuple):
    """Layers that stay together, their measured seconds of forward and backward, and the shapes of a sample that enters and
    leaves."""

    span: slice
    seconds: float
    entering: tuple[int, ...]
    leaving: tuple[int, ...]


def groups(model: Model) -> list[slice]:
    """Return the spans of layers that no stage divides. A span keeps together: a residual branch and its sum; layers whose names
    begin alike, up to "/"; a layer without parameters and the layer before (at the start, the layer after).
    """
    starts: list[int] = []
    i, layers = 0, model.layers
    while i < len(layers):
        end = next((j for j in range(i, len(layers)) if layers[j].shares_cache_with == layers[i].name), None)
        begins = layers[i].name.split("/")[0]
        joins = bool(starts) and (begins == layers[i - 1].name.split("/")[0] or not layers[i].parameters)
        if end is not None or not joins:
            starts.append(i)
        i = i + 1 if end is None else end + 1
    if len(starts) > 1 and not any(layer.parameters for layer in layers[: starts[1]]):
        del starts[1]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(layers)], strict=True)]


def measure(model: Model, x: Array, dtype: np.dtype) -> list[Group]:
    """Time each group of layers on a micro-batch x of samples, without optimizer and loss; equal groups only once.

    If ranks split layers, these ranks must call together.
    """
    samples, known, found = len(x), {}, []
    for span in groups(model):
        names = " ".join(re.sub(r"\d+", "", layer.name) for layer in model.layers[span])
        shapes = [p.shape for layer in model.layers[span] for p in layer.parameters.values()]
        key = (names, str(shapes), x.shape)
        if key not in known:
            known[key] = _time(models.parts(model, [span]), x, dtype, need_input_grad=span.start > 0)
        seconds, shape = known[key]
        found.append(Group(span, seconds, _of_a_sample(x.shape, samples), _of_a_sample(shape, samples)))
        x = np.zeros(shape, dtype)
    return found


def _of_a_sample(shape: tuple[int, ...], samples: int) -> tuple[int, ...]:
    return (shape[0] // samples, *shape[1:])


def _time(part: Model, x: Array, dtype: np.dtype, need_input_grad: bool) -> tuple[float, tuple[int, ...]]:
    """Return the seconds of the fastest of some passes, and the shape of the output."""
    flat, caches = np.full(part.layout.size, 0.01, dtype), models.caches(part)
    params, grads = models.per_layer(part, flat), models.per_layer(part, np.zeros_like(flat))
    times = []
    for _ in range(1 + REPEATS):
        begin = perf_counter()
        y = models.forward(part, params, caches, x)
        models.backward(part, params, grads, caches, np.zeros_like(y), need_input_grad=need_input_grad)
        times.append(perf_counter() - begin)
    return min(times[1:]), y.shape


def cut(costs: Sequence[float], count: int) -> list[slice]:
    """Return `count` non-empty slices of the groups, such that the most expensive slice is as cheap as possible.

    Raises: UsageError if there are fewer than `count` groups.

    >>> cut([1, 1, 1, 3], 2)
    [slice(0, 3, None), slice(3, 4, None)]
    """
    n = len(costs)
    if n < count:
        raise UsageError(
            f"the model has {counted(n, 'group')} of layers, too few for {count} pipeline stages; "
            f"choose pp * --pipeline-chunks <= {n}"
        )
    upto = [0.0, *accumulate(costs)]
    best = [[0.0] + [float("inf")] * n]
    cuts: list[list[int]] = []
    for _ in range(count):
        row, at = [float("inf")] * (n + 1), [0] * (n + 1)
        for end in range(1, n + 1):
            for begin in range(end):
                worst = max(best[-1][begin], upto[end] - upto[begin])
                if worst < row[end]:
                    row[end], at[end] = worst, begin
        best.append(row)
        cuts.append(at)
    found, end = [], n
    for at in reversed(cuts):
        found.append(slice(at[end], end))
        end = at[end]
    return found[::-1]


class TiedParameter(NamedTuple):
    """A slice of the parameters that another pipeline stage has too, and a communicator of the two ranks."""

    comm: Communicator
    where: slice


def tied_parameter(model: Model, whole: Model, mesh: Mesh) -> TiedParameter | None:
    """Return the tied parameter on the first and the last stage if both hold the embedding; otherwise None. Collective."""
    owner = next((layer.shares_parameters_with for layer in whole.layers if layer.shares_parameters_with), None)
    if owner is None or mesh.pp.size == 1:
        return None
    comm = mesh.pp.split(0 if mesh.pp.rank in (0, mesh.pp.size - 1) else None)
    if comm is None:
        return None
    name = models.borrowed(model, whole) or f"{owner}.token"
    slot = next(slot for slot in model.layout.slots if slot.name == name)
    return TiedParameter(comm, slice(slot.start, slot.stop))
