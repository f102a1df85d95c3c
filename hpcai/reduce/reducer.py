"""The protocol of a reducer, and the result of a reduction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hpcai.comm.collectives import Collectives
from hpcai.xp import Array

State = Any


class Reduced(NamedTuple):
    """The mean over all ranks, with the same bytes on each; the residual of this rank's array (None: no residual); the state.

    Nothing is lost: the mean over ranks of (x - residual) is `mean`.
    """

    mean: Array
    residual: Array | None
    state: State


class Reducer(NamedTuple):
    """A reducer: it computes the mean of an array over all ranks.

    init(x) -> the state for arrays like x. reduce(x, comm, state) -> Reduced; x is flat f32, may be overwritten, and may become
    the mean. keep(x, memory, comm, state) -> Reduced: the mean of x + memory; the same pass makes the memory the residual. If
    `keep` is None, `error_feedback` adds the memory to x, calls `reduce` and copies the residual.
    """

    name: str
    init: Callable[[Array], State]
    reduce: Callable[[Array, Collectives, State], Reduced]
    keep: Callable[[Array, Array, Collectives, State], Reduced] | None = None
