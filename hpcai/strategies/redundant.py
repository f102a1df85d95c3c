"""Copies of shards (parallel/redundancy.py): each rank also keeps its left neighbour's shard, in case that neighbour fails."""

from __future__ import annotations

from dataclasses import dataclass

from hpcai.optim import clip
from hpcai.parallel.redundancy import Backup
from hpcai.parallel.zero import Piece
from hpcai.strategies.sharded import Sharded, named_arrays
from hpcai.strategies.strategy import Kept, Setup, State, Strategy, Totals, Wrapped, part, wrapping


@dataclass
class Redundant(Wrapped):
    """The state of `redundant`. backup: the copy of the left neighbour's shard; base: the innermost state."""

    backup: Backup
    base: Sharded


def redundant(inner: Strategy, whole: bool) -> Strategy:
    """Return `inner` with a copy of the left neighbour's shard. whole: whether summed gradients are a flat array, not a shard."""

    def init(inner_state: State, setup: Setup) -> Redundant:
        base = part(inner_state, Sharded)
        assert base is not None
        return Redundant(inner_state, Backup(setup.units, setup.mesh.dp, setup.optimizer, setup.dtype), base)

    def settle(state: Redundant, totals: Totals) -> Totals:
        state.backup.exchange(state.buffers.grads, state.base.owned, whole)
        return inner.settle(state.inner, totals)

    def update(state: Redundant, totals: Totals, step: int, lr: float) -> None:
        inner.update(state.inner, totals, step, lr)
        factor = clip.factor(totals.grad_norm, state.base.setup.clip) * totals.factor
        state.backup.update(state.buffers.params, state.base.optimizer, step, lr, factor)

    def kept(state: Redundant) -> list[Kept]:
        backup = state.backup
        pieces = {"params": [Piece(piece.flat, piece.flat) for piece in backup.owned]}
        copies = [
            Kept(name, "copy", array, pieces.get(name, backup.owned), backup.left)
            for name, array in named_arrays(state.buffers.params, backup.state)
        ]
        return [*inner.kept(state.inner), *copies]

    def restored(state: Redundant) -> None:
        inner.restored(state.inner)
        state.backup.renew(state.buffers.optimizer)

    return wrapping(inner, init)._replace(settle=settle, update=update, kept=kept, restored=restored)
