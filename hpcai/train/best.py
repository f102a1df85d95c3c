"""The best epoch so far by one of its figures. The best epoch's checkpoint is kept, and --patience ends a run that finds no
better epoch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from hpcai.checkpoint import naming
from hpcai.checkpoint.retention import Retention
from hpcai.data.dataset import Dataset
from hpcai.errors import UsageError, counted
from hpcai.nn.models import Model
from hpcai.train.history import Progress
from hpcai.train.options.options import Options

RISING = ("validation_accuracy", "test_accuracy")
"""Figures for which a larger value is better; for all other figures a smaller value is better."""


def metric(options: Options, validates: bool) -> str:
    """Return the name of the figure that decides; empty if the options ask for none.

    validates: whether the data have samples for validation.
    """
    if options.keep_best is None and options.patience is None:
        return ""
    return options.keep_best or ("validation_loss" if validates else "test_loss")


def require(options: Options, dataset: Dataset) -> None:
    """Raise UsageError for a figure that cannot be computed on this data."""
    name = metric(options, dataset.validates)
    if name.startswith("validation_") and not dataset.validates:
        raise UsageError(f"--keep-best {name} needs data for validation; give --validation FRACTION, as in --validation 0.1")
    if name in RISING and not dataset.classes:
        raise UsageError(f"--keep-best {name} is for classes, but these targets are quantities; take {name.split('_')[0]}_loss")


def require_counted(options: Options, model: Model) -> None:
    """Raise UsageError if accuracy is asked for and the model's loss does not count correct rows."""
    name = options.keep_best or ""
    if name in RISING and not model.loss.counts:
        raise UsageError(
            f"--keep-best {name} needs a model that predicts; {model.name} has no accuracy; take {name.split('_')[0]}_loss"
        )


def judge(progress: Progress, record: Mapping[str, Any], options: Options, whole: bool = True) -> None:
    """Compare an epoch's figures with the best so far. whole: whether the epoch is complete and counts for --patience."""
    name = metric(options, "validation_loss" in record)
    if not name:
        return
    if progress.best is not None and progress.best["metric"] != name:
        progress.best, progress.waited = None, 0
    value, best = record.get(name), None if progress.best is None else progress.best["value"]
    better = value is not None and value == value and (best is None or (value > best if name in RISING else value < best))
    if better:
        progress.best = {"metric": name, "step": progress.step, "value": value}
    if whole:
        progress.waited = 0 if better else progress.waited + 1


def waits_in_vain(progress: Progress, options: Options) -> bool:
    """Return whether the run ends early: --patience epochs have passed without a better one (Prechelt,
    doi:10.1007/3-540-49430-8_3).
    """
    return options.patience is not None and progress.waited >= options.patience


def is_here(progress: Progress, options: Options) -> bool:
    """Return whether the best epoch has just ended, so that its checkpoint is due."""
    return options.keep_best is not None and progress.best is not None and progress.best["step"] == progress.step


def checkpoint(retention: Retention, step: int) -> str | None:
    """Return the path of the best epoch's checkpoint. Runs on rank 0.

    Return None, after a warning, if that checkpoint does not exist. Either it could not be written, or the run resumed from a
    checkpoint without --keep-best or from another folder.
    """
    name = naming.name_of(step)
    if retention.has(name):
        return retention.place.path(name)
    kept = f"the best one kept is {retention.best}" if retention.best else f"none is kept in {retention.place.path('')}"
    said = f"the best epoch, which ended after step {step:,}, has no checkpoint; {kept}"
    print(f"hpcai: warning: {said}", file=sys.stderr, flush=True)
    return None


def stopped(progress: Progress) -> str:
    """Describe why a run has ended early."""
    assert progress.best is not None or progress.waited
    best = progress.best
    since = "" if best is None else f" than {best['value']:.6g} after step {best['step']:,}"
    metric = "loss" if best is None else best["metric"].replace("_", " ")
    return f"stopped early after step {progress.step:,}: {counted(progress.waited, 'epoch')} without a better {metric}{since}"
