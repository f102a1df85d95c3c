"""Tensor and sequence parallelism: how the ranks of one axis split layers.

Ranks split the columns of a block's first product and the rows of its second, so a rank needs no data of other ranks in between.
Outside of the products, in norms and sums too, ranks split the rows (tokens), so that no two ranks compute or keep the same row.
One allgather before the block and one reduce-scatter after it carry the bytes of an all-reduce. Source: Shoeybi et al.,
arXiv:1909.08053; Korthikanti et al., arXiv:2205.05198.
"""

from __future__ import annotations

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.nn.layers import Cache, Layer, Params, buffer
from hpcai.nn.split import WHOLE, Split
from hpcai.xp import Array


def split(comm: Communicator) -> Split:
    """Return a Split between the ranks of `comm`; WHOLE if there is only one rank."""
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
    """Two operations, each the gradient of the other: `all` gathers the ranks' rows, `own` sums all rows and splits them."""

    def __init__(self, comm: Communicator):
        self.comm = comm
        self._shared: Array = np.empty(0)

    def all(self, params: Params, cache: Cache, x: Array) -> Array:
        """Gather x, (rows / P, width) of this rank. Return (rows, width) of all ranks."""
        y = buffer((self.comm.size * len(x), *x.shape[1:]), x)
        y[self.comm.rank * len(x) : (self.comm.rank + 1) * len(x)] = x
        return self.comm.allgather(y)

    def own(self, params: Params, cache: Cache, x: Array) -> Array:
        """Sum x, (rows, width), over ranks. Return this rank's (rows / P, width) of the sum; x is not changed."""
        if self._shared.size < x.size or self._shared.dtype != x.dtype:
            self._shared = self.comm.symmetric_empty(x.size, x.dtype)
        summands = self._shared[: x.size]
        summands[:] = x.reshape(-1)
        y = buffer((len(x) // self.comm.size, *x.shape[1:]), x)
        y.reshape(-1)[:] = self.comm.reduce_scatter(summands)
        return y
