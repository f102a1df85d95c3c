"""Copies of shards, so that a lost rank does not lose its shard.

Every rank keeps a copy of its left neighbour's shard of optimizer state. In each step, the neighbour sends its gradients, not its
state. This rank makes the same update, with the same numbers in the same order, so that both copies have the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.optim.optimizers import Optimizer, State
from hpcai.parallel import zero
from hpcai.parallel.zero import Piece
from hpcai.xp import Array

MESSAGE_BYTES = 1 << 30


class Backup:
    """A copy of the left neighbour's shard. Cost a step: a message of a shard's gradients, and a shard's update; memory: a shard
    of gradients and of each array of optimizer state.
    """

    def __init__(self, units: Sequence[slice], comm: Communicator, optimizer: Optimizer, dtype: np.dtype):
        self.comm = comm
        self.left, self.right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        self.owned = zero.pieces(units, comm, self.left)
        size = self.owned[-1].shard.stop if self.owned else 0
        self.grads = np.zeros(size, dtype)
        self.state: State = optimizer.init(self.grads)

    def exchange(self, grads: Array, owned: Sequence[Piece], whole: bool) -> None:
        """Send this rank's shard of the gradients to the right neighbour, and receive the left neighbour's. Collective.

        whole: whether `grads` is the flat array; otherwise `grads` is the shard.
        """
        self._pass_on(zero.scatter(grads, owned) if whole else grads, self.grads)

    def renew(self, state: State) -> None:
        """Receive the left neighbour's optimizer state again, after it was loaded. Collective."""
        for name, array in state.items():
            self._pass_on(array, self.state[name])

    def update(self, params: Array, optimizer: Optimizer, step: int, lr: float, factor: float) -> None:
        """Make the left neighbour's update, of its state and its part of the flat parameters, which it will send anyway."""
        for piece in self.owned:
            state = {name: array[piece.shard] for name, array in self.state.items()}
            optimizer.update(params[piece.flat], self.grads[piece.shard], state, step, lr, factor)

    def _pass_on(self, mine: Array, theirs: Array) -> None:
        pending = [self.comm.irecv(part, self.left) for part in _parts(theirs)]
        pending += [self.comm.isend(part, self.right) for part in _parts(mine)]
        for one in pending:
            one.wait()


def _parts(x: Array) -> Iterator[Array]:
    """Cut an array into pieces of one message each."""
    step = MESSAGE_BYTES // x.itemsize
    return (x[start : start + step] for start in range(0, x.size, step))
