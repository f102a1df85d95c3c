"""Tensor and sequence parallelism: how the ranks of one axis share out layers.

A block's first product has its columns shared out, its second its rows, so a rank needs nothing of the others in between. Outside
of the products rows (tokens) are shared out, norms and sums included, so that no rank computes or keeps them twice: one allgather
before the block and one reduce-scatter after it, the same bytes as an all-reduce. Source: Shoeybi et al., arXiv:1909.08053;
Korthikanti et al., arXiv:2205.05198.
"""

from __future__ import annotations

from hpcai.comm.communicator import Communicator
from hpcai.nn.layers import Cache, Layer, Params
from hpcai.nn.split import WHOLE, Split
from hpcai.xp import Array


def split(comm: Communicator) -> Split:
    """A Split between the ranks of `comm`; WHOLE if there is one."""
    if comm.size == 1:
        return WHOLE
    return Split(
        comm.rank,
        comm.size,
        gather=lambda name: (Layer(name, {}, _Rows(comm, "y").all, _Rows(comm, "dx").own),),
        scatter=lambda name: (Layer(name, {}, _Rows(comm, "y").own, _Rows(comm, "dx").all),),
        sum_into=lambda x: comm.allreduce(x, "sum"),
        max_into=lambda x: comm.allreduce(x, "max"),
    )


class _Rows:
    """From each rank's rows to all, and from summands of all rows to each rank's rows of the sum: each the other's gradient."""

    def __init__(self, comm: Communicator, name: str):
        self.comm, self.name = comm, name

    def all(self, params: Params, cache: Cache, x: Array) -> Array:
        """(rows / P, width) of this rank to (rows, width) of all."""
        shape = (self.comm.size * len(x), *x.shape[1:])
        y = self._symmetric(cache, shape, x)
        y[self.comm.rank * len(x) : (self.comm.rank + 1) * len(x)] = x
        return self.comm.allgather(y)

    def own(self, params: Params, cache: Cache, x: Array) -> Array:
        """(rows, width) to be summed over ranks to this rank's (rows / P, width); x stays as it is."""
        y = self._symmetric(cache, x.shape, x)
        y[...] = x
        each = len(x) // self.comm.size
        return self.comm.reduce_scatter(y).reshape(each, *x.shape[1:])

    def _symmetric(self, cache: Cache, shape: tuple[int, ...], like: Array) -> Array:
        """Rows of a buffer in memory that the ranks share, kept from step to step. Collective where it grows."""
        key = f"{self.name} symmetric"
        kept = cache.get(key)
        if kept is None or len(kept) < shape[0] or kept.shape[1:] != shape[1:] or kept.dtype != like.dtype:
            kept = cache[key] = self.comm.empty(shape, like.dtype)
        return kept[: shape[0]]
