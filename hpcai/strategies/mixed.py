"""Mixed precision: parameters, gradients and activations in 16 bits, arithmetic and a master copy of the parameters in f32.

It gives the results of hardware with 16-bit units, not its speed. Values are rounded to 16 bits where such hardware would keep
16 bits. Gradients and gathered parameters are sent in 16 bits. Source: Micikevicius et al., arXiv:1710.03740.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcai import ops
from hpcai.errors import NonFiniteError
from hpcai.strategies.sharded import Sharded
from hpcai.strategies.strategy import Kept, Setup, State, Strategy, Totals, Wrapped, part, wrapping

FIRST_SCALE, GROW_AFTER = 2.0**15, 1000
"""The scale of the loss with f16: its first value, and after how many steps without overflow it doubles. Overflow halves it."""


@dataclass
class Mixed(Wrapped):
    """The state of `mixed`. scale: of the loss; good: the number of steps with finite gradients since the scale changed."""

    scale: float = 1.0
    good: int = 0

    def settle(self, finite: bool, step: int) -> bool:
        """Adapt f16's scale after a step; return whether the gradients can be used. bf16 has f32's range, so its scale stays 1.

        Raises: NonFiniteError if the scale falls below 2^-14.
        """
        if self.buffers.stored.dtype != np.float16:
            return True
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale /= 2
            if self.scale < 2.0**-14:
                raise NonFiniteError(
                    f"gradients in f16 overflow even at the smallest scale of the loss, in step {step + 1}; try --dtype bf16"
                )
        elif self.good == GROW_AFTER:
            self.scale, self.good = min(2 * self.scale, 2.0**24), 0
        return finite


def mixed(inner: Strategy) -> Strategy:
    """Return `inner` with parameters and gradients stored and sent in the 16-bit dtype `setup.storage`.

    With f16 a step whose gradient is not finite is skipped, and the scale of the loss halves.
    """

    def init(inner_state: State, setup: Setup) -> Mixed:
        state = Mixed(inner_state, FIRST_SCALE if setup.storage == np.float16 else 1.0)
        restored(state)
        return state

    def filled(state: Mixed, i: int) -> None:
        buffers, bucket = state.buffers, _base(state).setup.buckets[i]
        ops.cast_into(buffers.grads[bucket], buffers.gradients.flat[bucket])
        inner.filled(state.inner, i)

    def settle(state: Mixed, totals: Totals) -> Totals:
        totals = inner.settle(state.inner, totals)
        return totals._replace(grad_norm=totals.grad_norm / state.scale)

    def update(state: Mixed, totals: Totals, step: int, lr: float) -> None:
        _base(state).unscale = 1.0 / state.scale
        if state.settle(math.isfinite(totals.grad_norm), step):
            inner.update(state.inner, totals, step, lr)

    def published(state: Mixed, share: Any) -> None:
        buffers = state.buffers
        for place in buffers.places:
            flat = buffers.computed is not None
            ops.cast_into(buffers.stored[place.flat if flat else place.state], buffers.params[place.params])
        share(state.inner)
        if buffers.computed is not None:
            ops.cast_into(buffers.computed, buffers.stored)

    def restored(state: Mixed) -> None:
        published(state, inner.restored)

    def kept(state: Mixed) -> list[Kept]:
        def put(counter: Any) -> None:
            if counter:
                state.scale, state.good = counter

        return [*inner.kept(state.inner), Kept("loss_scale", "counter", counter=[state.scale, state.good], put=put)]

    return wrapping(inner, init)._replace(
        scale=lambda state: inner.scale(state.inner) * state.scale,
        filled=filled,
        settle=settle,
        update=update,
        share=lambda state: published(state, inner.share),
        kept=kept,
        restored=restored,
    )


def skips_overflow(state: State) -> bool:
    """Return whether a step whose gradient is not finite is skipped and the loss scaled down: true with f16 storage."""
    found = part(state, Mixed)
    return found is not None and found.buffers.stored.dtype == np.float16


def _base(state: Mixed) -> Sharded:
    found = part(state, Sharded)
    assert found is not None
    return found
