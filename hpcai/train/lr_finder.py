"""The learning-rate range test. The rate grows from step to step, and the rate where the loss falls steepest is suggested.

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
"""The first rate, the last rate, and the number of steps."""

SMOOTHING, WORSE = 0.9, 4.0
"""The weight of the past in the running mean of losses; the test ends when this mean is more than WORSE times the best mean."""

SKIPPED, FEWEST = 10, 20
"""Steps at the start that are ignored, since the mean is not settled; the fewest steps that allow a suggestion."""

SHOWN = 12
"""About how many rows are printed."""


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
        """Record the loss of a step made with `lr`; return whether to make another step."""
        if not math.isfinite(loss):
            return False
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        smoothed = self._mean / (1 - SMOOTHING ** (len(self.tried) + 1))
        self.tried.append(Tried(self.lr, loss, smoothed))
        if len(self.tried) > SKIPPED:
            self._best = min(self._best, smoothed)
        return len(self.tried) < STEPS and smoothed <= WORSE * self._best


def suggested(tried: list[Tried]) -> float | None:
    """Return the rate at which the smoothed loss falls steepest over the rate's logarithm; None if the loss falls nowhere, or
    there are fewer than FEWEST steps.

    A running mean lags behind by SMOOTHING / (1 - SMOOTHING) steps, in which the rate grows several times. So the mean is
    smoothed once more backwards, from its lowest point.
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
    """Print the rates and the suggestion. Write find-lr.json, and with --plot find-lr.png. Collective."""
    comm.on_root(lambda: _say(options, tried))


def _say(options: Options, tried: list[Tried]) -> None:
    rate, folder = suggested(tried), Path(options.run_dir or "runs")
    if not tried:
        raise UsageError(f"the loss is not finite even at --lr {LOWEST:g}; check the data, or begin with other parameters")
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
    said = "no suggestion: the loss does not fall at any rate" if rate is None else f"suggestion: --lr {rate:.2g}"
    print(f"{said}   (written: {', '.join(map(str, written))})", flush=True)
