"""Remarks at the start of a run on options that have an unexpected effect, and on options that differ from a checkpoint's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hpcai.errors import counted
from hpcai.parallel.mesh import Sizes
from hpcai.train import strict
from hpcai.train.options import effects
from hpcai.train.options.options import RENAMED, Options

MATTER = (
    "lr",
    "momentum",
    "weight_decay",
    "lr_schedule",
    "lr_warmup_steps",
    "lr_decay_steps",
    "clip_norm",
    "compress",
    "compress_layers",
    "compress_warmup_steps",
    "compress_smallest",
    "no_error_feedback",
    "fixed_micro_batch",
    "class_weights",
)
"""Options that may differ from a checkpoint's and change the results. Other options change the last bits, or nothing."""

LENGTH = ("epochs", "steps")
"""Options that change the learning rates of --lr-schedule cosine."""


def beforehand(o: Options, axes: Sizes, samples: int, per_epoch: int, total: int, validates: bool) -> list[str]:
    """Return a line for each option that has an unexpected effect, or no effect, on this mesh in a run of `total` steps.

    samples: for training. per_epoch: steps in an epoch. validates: whether the data have samples for validation.
    """
    length, by_epochs = counted(total, "step"), (o.epochs or 0) * per_epoch
    told = [
        (
            o.batch > samples,
            f"--batch {o.batch} is more than the {counted(samples, 'training sample')}: each step uses all of them",
        ),
        (
            bool(o.epochs and o.steps and by_epochs < o.steps),
            f"--epochs {o.epochs} ends the run after {counted(by_epochs, 'step')}, before --steps {o.steps}",
        ),
        (
            bool(o.epochs and o.steps and by_epochs > o.steps),
            f"--steps {o.steps} ends the run before --epochs {o.epochs}, which would take {counted(by_epochs, 'step')}",
        ),
        (
            o.patience is not None and (o.keep_best or ("" if validates else "test")).startswith("test"),
            f"--patience {o.patience} ends the run by the test data, so figures on them will look better than on new data; "
            "give --validation FRACTION",
        ),
        (
            o.lr_warmup_steps >= total,
            f"--lr-warmup-steps {o.lr_warmup_steps} is as long as the run of {length} or longer: the learning rate "
            "rises until the end",
        ),
        (
            o.lr_schedule == "step" and o.lr_decay_steps >= total,
            f"--lr-schedule step with --lr-decay-steps {o.lr_decay_steps} never lowers the learning rate in {length}",
        ),
        (
            o.compress != "none" and o.compress_warmup_steps >= total,
            f"--compress-warmup-steps {o.compress_warmup_steps} is as long as the run of {length} or longer: "
            "nothing is compressed",
        ),
    ]
    return [*effects.idle(o, axes), *(words for true, words in told if true)]


def recorded(options: Options) -> dict[str, Any]:
    """Return the options that a checkpoint keeps for later comparison."""
    found: dict[str, Any] = json.loads(strict.dumps({name: getattr(options, name) for name in (*MATTER, *LENGTH)}))
    return found


def changed(before: Any, options: Options) -> str:
    """Describe the options that differ from a checkpoint's, to be appended to a message; empty if none differ.

    >>> from hpcai.train.options import parser
    >>> changed(recorded(parser.parse(["--lr", "0.001"])), parser.parse(["--lr", "0.1"]))
    ' with --lr 0.1 (was 0.001)'
    """
    if not isinstance(before, Mapping):
        return ""
    now, before = recorded(options), {RENAMED.get(name, name): value for name, value in before.items()}
    names = (*MATTER, *LENGTH) if options.lr_schedule == "cosine" else MATTER
    told = [
        f"--{name.replace('_', '-')} {_shown(now[name])} (was {_shown(before[name])})"
        for name in names
        if name in before and before[name] != now[name]
    ]
    return f" with {', '.join(told)}" if told else ""


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join("=".join(map(str, one)) if isinstance(one, list) else str(one) for one in value[:9]) or "none"
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)[:80]
