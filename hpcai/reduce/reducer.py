"""The protocol of a reducer, and the record of what it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hpcai.comm.collectives import Collectives
from hpcai.xp import Array

State = Any


class Reduced(NamedTuple):
    """The mean over all ranks, the same bytes on each; what this rank's array has lost on the way (None: nothing); the state.

    Nothing is lost: the mean over ranks of (x - residual) is `mean`.
    """

    mean: Array
    residual: Array | None
    state: State


class Reducer(NamedTuple):
    """A reducer: it takes the mean of an array over all ranks.

    init(x) -> the state for arrays like x. reduce(x, comm, state) -> Reduced; x is flat f32, may be overwritten, and the mean
    may lie in it. keep(x, memory, comm, state) -> Reduced is the mean of x + memory, after which the memory, written in the same
    pass, is the residual; where a reducer has none, `error_feedback` adds and copies.
    """

    name: str
    init: Callable[[Array], State]
    reduce: Callable[[Array, Collectives, State], Reduced]
    keep: Callable[[Array, Array, Collectives, State], Reduced] | None = None
