"""Tensor and sequence parallelism: how the ranks of one axis share out layers.

A block's first product has its columns shared out, its second its rows, so a rank needs nothing of the others in between. Outside
of the products rows (tokens) are shared out, norms and sums included, so that no rank computes or keeps them twice: one allgather
before the block and one reduce-scatter after it, the same bytes as an all-reduce. Source: Shoeybi et al., arXiv:1909.08053;
Korthikanti et al., arXiv:2205.05198.
"""

from __future__ import annotations

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.nn.layers import Cache, Layer, Params, buffer
from hpcai.nn.split import WHOLE, Split
from hpcai.xp import Array


def split(comm: Communicator) -> Split:
    """A Split between the ranks of `comm`; WHOLE if there is one."""
    if comm.size == 1:
        return WHOLE
    rows = _Rows(comm)
    return Split(
        comm.rank,
        comm.size,
        gather=lambda name: (Layer(name, {}, rows.all, rows.own),),
        scatter=lambda name: (Layer(name, {}, rows.own, rows.all),),
        sum_into=lambda x: comm.allreduce(x, "sum"),
        max_into=lambda x: comm.allreduce(x, "max"),
    )


class _Rows:
    """From each rank's rows to all, and from summands of all rows to each rank's rows of the sum: each the other's gradient."""

    def __init__(self, comm: Communicator):
        self.comm = comm
        self._shared: Array = np.empty(0)

    def all(self, params: Params, cache: Cache, x: Array) -> Array:
        """(rows / P, width) of this rank to (rows, width) of all."""
        y = buffer((self.comm.size * len(x), *x.shape[1:]), x)
        y[self.comm.rank * len(x) : (self.comm.rank + 1) * len(x)] = x
        return self.comm.allgather(y)

    def own(self, params: Params, cache: Cache, x: Array) -> Array:
        """(rows, width) to be summed over ranks to this rank's (rows / P, width); x stays as it is."""
        if self._shared.size < x.size or self._shared.dtype != x.dtype:
            self._shared = self.comm.symmetric_empty(x.size, x.dtype)
        summands = self._shared[: x.size]
        summands[:] = x.reshape(-1)
        y = buffer((len(x) // self.comm.size, *x.shape[1:]), x)
        y.reshape(-1)[:] = self.comm.reduce_scatter(summands)
        return y
