"""The options that have an effect only together with others. A run names the given options that have no effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from hpcai.nn.table import MODELS
from hpcai.parallel.mesh import Sizes
from hpcai.train.options.options import Options


class Belongs(NamedTuple):
    """The condition under which an option has an effect, this condition in words, and, in words, the value found in its place."""

    acts: Callable[[Options, Sizes], bool]
    to: str
    instead: Callable[[Options, Sizes], str]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _with(name: str, *values: str) -> Belongs:
    """Return the condition that another option has one of these values."""
    flag = _flag(name)
    return Belongs(
        lambda o, axes: getattr(o, name) in values, f"{flag} {' or '.join(values)}", lambda o, axes: f"{flag} {getattr(o, name)}"
    )


def _on(axis: str) -> Belongs:
    """Return the condition that the mesh has several ranks on an axis."""
    return Belongs(lambda o, axes: getattr(axes, axis) > 1, f"a --mesh with {axis}=2 or more", lambda o, axes: f"{axis}=1")


def _also(one: Belongs, other: Belongs) -> Belongs:
    """Return the condition that both conditions hold."""

    def instead(o: Options, axes: Sizes) -> str:
        return (other if one.acts(o, axes) else one).instead(o, axes)

    return Belongs(lambda o, axes: one.acts(o, axes) and other.acts(o, axes), f"{one.to} and {other.to}", instead)


def _models_with(option: str) -> list[str]:
    return [name for name, row in MODELS.items() if option in row.options]


_CODECS = Belongs(
    lambda o, axes: o.compress not in ("none", "reproducible"),
    "a codec of --compress",
    lambda o, axes: f"--compress {o.compress}",
)
_FLOATS = Belongs(
    lambda o, axes: o.compress != "reproducible",
    "sums other than --compress reproducible",
    lambda o, axes: "--compress reproducible",
)
_WHOLE = Belongs(
    lambda o, axes: not o.zero or o.compress != "none",
    "all-reduces, which --zero has only with --compress",
    lambda o, axes: f"--zero {o.zero}",
)

OF: dict[str, Belongs] = {
    **{name: _with("model", *_models_with(name)) for row in MODELS.values() for name in row.options if name != "image_channels"},
    "context": Belongs(lambda o, axes: o.data.startswith("text:"), "--data text:PATH", lambda o, axes: f"--data {o.data}"),
    "lr_decay_steps": _with("lr_schedule", "step"),
    **dict.fromkeys(("compress_warmup_steps", "compress_smallest", "no_error_feedback"), _CODECS),
    "fixed_micro_batch": _with("compress", "reproducible"),
    "pipeline_schedule": _on("pp"),
    "zero": _on("dp"),
    "allreduce_algorithm": _also(_on("dp"), _WHOLE),
    "overlap": _also(_on("dp"), _FLOATS),
    "bucket_bytes": _FLOATS,
}
"""Options that have no effect together with some others. Every other option always has an effect, or checks.py rejects it."""


def idle(o: Options, axes: Sizes) -> list[str]:
    """Return a line for each option that has no effect here. Options with their default value are not named, since files of
    options list all options.
    """
    return [
        f"{_flag(name)} does nothing with {belongs.instead(o, axes)}; it is for {belongs.to}"
        for name, default in ((field.name, field.default) for field in dataclasses.fields(o))
        if (belongs := OF.get(name)) is not None and getattr(o, name) != default and not belongs.acts(o, axes)
    ]
