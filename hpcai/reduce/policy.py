"""When to compress: not small arrays, which cost latency only, and not the first steps, where gradients are wild."""

from __future__ import annotations

from hpcai.comm.communicator import Communicator
from hpcai.reduce.combine import exact
from hpcai.reduce.reducer import Reduced, Reducer, State
from hpcai.xp import Array


def policy(reducer: Reducer, smallest: int = 0, warmup: int = 0) -> Reducer:
    """`reducer` for arrays of at least `smallest` elements after `warmup` arrays; until then, and for others, the exact mean.

    State: (arrays so far, the reducer's own state, or None for a small array).
    """
    plain = exact()

    def init(x: Array) -> State:
        return 0, reducer.init(x) if x.size >= smallest else None

    def reduce(x: Array, comm: Communicator, state: State) -> Reduced:
        count, inner = state
        if x.size < smallest or count < warmup:
            return plain.reduce(x, comm, None)._replace(state=(count + 1, inner))
        done = reducer.reduce(x, comm, inner)
        return done._replace(state=(count + 1, done.state))

    def said_bytes(x: Array) -> int:
        return x.nbytes if x.size < smallest else reducer.said_bytes(x)

    return Reducer(reducer.name, init, reduce, said_bytes=said_bytes)
