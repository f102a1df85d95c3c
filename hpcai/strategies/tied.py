"""Tied parameters: two pipeline stages hold the same matrix, as a language model's embedding also computes its scores."""

from __future__ import annotations

from dataclasses import dataclass

from hpcai import ops
from hpcai.parallel.stages import TiedParameter
from hpcai.strategies.strategy import Setup, State, Strategy, Totals, Wrapped, wrapping


@dataclass
class Tied(Wrapped):
    """The state of `tied`. parameter: the slice of tied parameters, and a communicator of the two ranks that hold it."""

    parameter: TiedParameter


def tied(inner: Strategy, parameter: TiedParameter, shards: bool) -> Strategy:
    """Return `inner` with tied parameters: this rank and one of another stage sum the gradients of the slice that both hold.

    shards: whether ranks update shards. If so, the two ranks sum first, while gradients are whole; parameters are sent after the
    update, since the shards of the two copies were summed in different orders. If not, the two ranks sum last, so that both
    copies get the same bits.
    """

    def init(inner_state: State, setup: Setup) -> Tied:
        return Tied(inner_state, parameter)

    def filled(state: Tied, i: int) -> None:
        if shards and i == 0:
            parameter.comm.allreduce(state.buffers.gradients.flat[parameter.where])
        inner.filled(state.inner, i)

    def settle(state: Tied, totals: Totals) -> Totals:
        if not shards:
            parameter.comm.allreduce(state.buffers.grads[parameter.where])
        return inner.settle(state.inner, totals)

    def share(state: Tied) -> None:
        inner.share(state.inner)
        if shards:
            buffers = state.buffers
            parameter.comm.broadcast(buffers.stored[parameter.where])
            if buffers.computed is not None:
                ops.cast_into(buffers.computed[parameter.where], buffers.stored[parameter.where])

    return wrapping(inner, init)._replace(filled=filled, settle=settle, share=share)
