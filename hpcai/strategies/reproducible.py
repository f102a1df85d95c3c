"""Gradients with the same bits for any number of ranks: train/grains.py computes and sums them; this keeps their unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpcai.strategies.strategy import Kept, Strategy, Wrapped, wrapping

LARGEST_EXPONENT = 256
"""More than a gradient in f32 can have, with what train/grains.py adds."""


@dataclass
class Reproducible(Wrapped):
    """The exponent of the largest magnitude that is expected in the next step; None before the first."""

    exponent: int | None = None


def reproducible(inner: Strategy) -> Strategy:
    """`inner`, whose buckets are never `filled`: the gradients are summed already when they are settled."""

    def kept(state: Reproducible) -> list[Kept]:
        def put(counter: Any) -> None:
            if counter is None or (type(counter) is int and abs(counter) <= LARGEST_EXPONENT):
                state.exponent = counter

        return [*inner.kept(state.inner), Kept("exponent", "counter", counter=state.exponent, put=put, early=True)]

    return wrapping(inner, lambda inner_state, setup: Reproducible(inner_state))._replace(kept=kept)
