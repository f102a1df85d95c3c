"""Schedules: functions from the step (counted from 0) to the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

from hpcai.ops.ranges import counts, not_negative, positive

Schedule = Callable[[int], float]


def constant(lr: float, *, warmup: int = 0) -> Schedule:
    """Return the constant schedule `lr`, after a linear warm-up over the first `warmup` steps."""
    not_negative(constant, lr=lr)
    counts(constant, 0, warmup=warmup)
    return _with_warmup(lambda step: lr, warmup)


def cosine(lr: float, *, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Return half a cosine from `lr` to `final`, after a linear warm-up (Loshchilov & Hutter, arXiv:1608.03983).

    steps: in all, with the warm-up; later steps have `final`.

    >>> [round(cosine(1.0, steps=4)(s), 3) for s in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    not_negative(cosine, lr=lr, final=final)
    counts(cosine, 1, steps=steps)
    counts(cosine, 0, warmup=warmup)
    span = max(1, steps - warmup)
    return _with_warmup(lambda step: final + (lr - final) * 0.5 * (1 + cos(pi * min(1.0, (step - warmup) / span))), warmup)


def step(lr: float, *, every: int, factor: float = 0.1, warmup: int = 0) -> Schedule:
    """Return `lr`, multiplied by `factor` once every `every` steps, after a linear warm-up."""
    not_negative(step, lr=lr)
    positive(step, factor=factor)
    counts(step, 1, every=every)
    counts(step, 0, warmup=warmup)
    return _with_warmup(lambda at: lr * factor ** (at // every), warmup)


def _with_warmup(schedule: Schedule, warmup: int) -> Schedule:
    def rate(step: int) -> float:
        if type(step) is not int or step < 0:
            counts(rate, 0, step=step)
        return schedule(step) if step >= warmup else schedule(warmup) * (step + 1) / (warmup + 1)

    rate.__name__ = "a schedule"
    return rate
