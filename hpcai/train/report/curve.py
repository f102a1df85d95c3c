"""The picture of a run: the loss over steps, and below it figures on test data."""

from __future__ import annotations

import json
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

from hpcai.data.dataset import Dataset
from hpcai.errors import UsageError
from hpcai.train.report.metrics import lines

UNITS = {
    "softmax_cross_entropy": "nats a sample",
    "token_cross_entropy": "nats a token",
    "mean_squared_error": "squared deviations of the target",
}
"""The units of hpcai's losses by name; for squared errors, the unit if targets are scaled."""

DECADE = 10.0
"""Losses that differ by at least this factor are drawn on a logarithmic axis."""


def require_matplotlib() -> None:
    """Raise UsageError if --plot is impossible, so that it is known before training, not after it."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'hpcai[plot]'")


def unit(loss: str, dataset: Dataset) -> str:
    """Return the unit of a loss of that name; empty if it is not known."""
    known = loss != "mean_squared_error" or ((dataset.encoding or {}).get("label") or {}).get("kind") == "number"
    return UNITS.get(loss, "") if known else ""


def plot(metrics: Path, history: list[dict[str, Any]], path: Path, title: str, unit: str = "", target: str = "") -> None:
    """Write a PNG with the loss of every step, its mean in every epoch, and the test loss. Test accuracy, or errors of quantities
    in the target's unit, are drawn below if they are known.

    metrics: the metrics file. history: the records of epochs. unit: of the loss. target: the name of the predicted quantity.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    below = _scores(history)
    figure, every = pyplot.subplots(
        1 + bool(below),
        figsize=(7, 6 if below else 4),
        layout="constrained",
        sharex=True,
        squeeze=False,
        height_ratios=[3, 2][: 1 + bool(below)],
    )
    _draw_losses(every[0, 0], [json.loads(line) for line in lines(metrics)], history)
    every[0, 0].set(ylabel=f"loss ({unit})" if unit else "loss", title=title)
    if below:
        _draw_scores(every[1, 0], [record["step"] for record in history], below, target)
    for axes in every[:, 0]:
        axes.grid(alpha=0.3, which="both")
    every[-1, 0].set_xlabel("step")
    every[-1, 0].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw_losses(axes: Any, records: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
    """Draw the losses of steps and of epochs: an epoch's mean is in its middle, and the test loss at its end."""
    ends = [record["step"] for record in history]
    middles = [(a + b) / 2 for a, b in zip([0, *ends], ends, strict=False)]
    means, tests = ([_number(record.get(key)) for record in history] for key in ("loss", "test_loss"))
    axes.plot([r["step"] for r in records], [_number(r["loss"]) for r in records], color="0.75", linewidth=0.8, label="step")
    axes.plot(middles, means, color="tab:blue", marker="o", markersize=4, label="mean of epoch")
    axes.plot(ends, tests, color="tab:orange", marker="s", markersize=4, label="test")
    shown = [value for value in means + tests if isfinite(value)]
    axes.set_yscale("log" if shown and min(shown) > 0 and max(shown) / min(shown) >= DECADE else "linear")
    axes.legend()


def _scores(history: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the epochs' figures on test data other than the loss, by key; a figure that no epoch has is left out."""
    keys = ("test_accuracy", "test_mae", "test_rmse")
    found = {key: [_number(record.get(key)) for record in history] for key in keys}
    return {key: values for key, values in found.items() if any(map(isfinite, values))}


def _draw_scores(axes: Any, ends: list[int], scores: dict[str, list[float]], target: str) -> None:
    if "test_accuracy" in scores:
        axes.plot(ends, scores["test_accuracy"], color="tab:orange", marker="s", markersize=4)
        axes.set_ylabel("test accuracy (fraction)")
        return
    for key, words, color in (("test_mae", "mean absolute", "tab:green"), ("test_rmse", "root mean square", "tab:orange")):
        axes.plot(ends, scores.get(key, [nan] * len(ends)), color=color, marker="s", markersize=4, label=words)
    axes.set(ylabel=f"test error (unit of {target or 'the target'})", ylim=(0, None))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.legend()


def _number(value: float | None) -> float:
    return nan if value is None or abs(value) == inf else float(value)


def range_test(
    rates: list[float], losses: list[float], smoothed: list[float], rate: float | None, path: Path, title: str
) -> None:
    """Write a PNG of a learning-rate range test: losses over rates, and the suggested rate, if any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(rates, losses, color="0.75", linewidth=0.8, label="step")
    axes.plot(rates, smoothed, color="tab:blue", label="smoothed")
    if rate is not None:
        axes.axvline(rate, color="tab:orange", linestyle="--", label=f"suggestion: {rate:.2g}")
    low, high = min(smoothed), smoothed[0]
    axes.set(
        xscale="log",
        xlabel="learning rate",
        ylabel="loss",
        title=title,
        ylim=(low - 0.1 * abs(high - low), high + abs(high - low)),
    )
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
