"""Gradients with the same bits for any number of ranks: train/grains.py computes and sums them; the exponent is kept here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpcai.strategies.strategy import Kept, Strategy, Wrapped, wrapping

LARGEST_EXPONENT = 256
"""A restored exponent has this magnitude at most: more than any f32 gradient gives, with the margin of train/grains.py."""


@dataclass
class Reproducible(Wrapped):
    """The state of `reproducible`. exponent: the next step's gradients are expected below 2^exponent; None before the first."""

    exponent: int | None = None


def reproducible(inner: Strategy) -> Strategy:
    """Return `inner` that also keeps the exponent. `filled` is never called: gradients are already summed before `settle`."""

    def kept(state: Reproducible) -> list[Kept]:
        def put(counter: Any) -> None:
            if counter is None or (type(counter) is int and abs(counter) <= LARGEST_EXPONENT):
                state.exponent = counter

        return [*inner.kept(state.inner), Kept("exponent", "counter", counter=state.exponent, put=put, early=True)]

    return wrapping(inner, lambda inner_state, setup: Reproducible(inner_state))._replace(kept=kept)
