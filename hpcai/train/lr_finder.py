"""The learning-rate range test: the rate grows from step to step, and where the loss falls steepest is a good one.

Source: Smith, arXiv:1506.01186; smoothing, end and suggestion as in fastai and Lightning.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcai.comm.communicator import Communicator
from hpcai.errors import UsageError
from hpcai.train import strict
from hpcai.train.options.options import Options
from hpcai.train.report import curve

LOWEST, HIGHEST, STEPS = 1e-7, 10.0, 120
"""The first and the last rate, and how many steps lie between them."""

SMOOTHING, WORSE = 0.9, 4.0
"""Of the running mean of losses; a mean so many times the best ends the test."""

SKIPPED, FEWEST = 10, 20
"""Steps at the start, in which the mean is not settled, and the fewest from which something can be said."""

SHOWN = 12
"""Rows that are printed."""


class Tried(NamedTuple):
    """A step: its rate, its loss, and the running mean of losses."""

    lr: float
    loss: float
    smoothed: float


class Finder:
    """The rate of each step, until the loss grows."""

    def __init__(self) -> None:
        self.tried: list[Tried] = []
        self._mean, self._best = 0.0, math.inf

    @property
    def lr(self) -> float:
        """Return the learning rate of the next step."""
        return LOWEST * (HIGHEST / LOWEST) ** (len(self.tried) / (STEPS - 1))

    def goes_on(self, loss: float) -> bool:
        """Take the loss of a step that was made with `lr`; whether there is another."""
        if not math.isfinite(loss):
            return False
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        smoothed = self._mean / (1 - SMOOTHING ** (len(self.tried) + 1))
        self.tried.append(Tried(self.lr, loss, smoothed))
        if len(self.tried) > SKIPPED:
            self._best = min(self._best, smoothed)
        return len(self.tried) < STEPS and smoothed <= WORSE * self._best


def suggested(tried: list[Tried]) -> float | None:
    """The rate at which the smoothed loss falls steepest over the rate's logarithm; None where it falls nowhere.

    A running mean lags behind by SMOOTHING / (1 - SMOOTHING) steps, over which the rate grows several times; so it is taken
    backwards too, from its lowest place on.
    """
    if len(tried) < FEWEST:
        return None
    losses = np.array([one.smoothed for one in tried])
    upto = SKIPPED + int(losses[SKIPPED:].argmin()) + 1
    centred, mean = np.empty(upto), losses[upto - 1]
    for i in reversed(range(upto)):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * losses[i]
        centred[i] = mean
    slopes = np.diff(centred)[SKIPPED:]
    return tried[SKIPPED + int(slopes.argmin())].lr if len(slopes) and slopes.min() < 0 else None


def say(options: Options, tried: list[Tried], comm: Communicator) -> None:
    """Print the rates and the suggestion, and write find-lr.json, with --plot find-lr.png too. Collective."""
    comm.on_root(lambda: _say(options, tried))


def _say(options: Options, tried: list[Tried]) -> None:
    rate, folder = suggested(tried), Path(options.run_dir or "runs")
    if not tried:
        raise UsageError(f"the loss is not finite at --lr {LOWEST:g} already; look at the data, or begin with other parameters")
    print(f"  {'lr':>9}  {'loss':>10}  smoothed")
    for one in tried[:: max(1, len(tried) // SHOWN)]:
        print(f"  {one.lr:9.2e}  {one.loss:10.4f}  {one.smoothed:.4f}")
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "suggestion": rate,
        "optimizer": options.optimizer,
        "batch": options.batch,
        "tried": [one._asdict() for one in tried],
    }
    (folder / "find-lr.json").write_text(strict.dumps(found, indent=1) + "\n", encoding="utf-8")
    written = [folder / "find-lr.json"]
    if options.plot:
        written.append(folder / "find-lr.png")
        rates, losses, smoothed = (list(column) for column in zip(*tried, strict=True))
        title = f"{options.optimizer}, batch {options.batch}"
        curve.range_test(rates, losses, smoothed, rate, folder / "find-lr.png", title)
    said = "no rate is better than another: the loss falls nowhere" if rate is None else f"suggestion: --lr {rate:.2g}"
    print(f"{said}   (written: {', '.join(map(str, written))})", flush=True)
