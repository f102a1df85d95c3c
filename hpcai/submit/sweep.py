"""--sweep: options with several values, and the runs of all their combinations."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

from hpcai.errors import UsageError, meant
from hpcai.submit.checks import NAME_BYTES
from hpcai.train.options import parser
from hpcai.train.options.options import RENAMED, Options

OWN = ("run-dir", "resume", "config", "metrics-file", "trace-file", "signals", "checkpoint-dir", "elastic")
"""Options that a sweep cannot vary: they are the same for all runs, or follow from the run's folder."""

MOST = 10_000
"""The largest number of runs of a sweep; Slurm allows a thousand unless a site sets another MaxArraySize."""


def axes(sweeps: Sequence[str]) -> dict[str, list[str]]:
    """The values of each option, from texts `NAME=V,V,...`; semicolons separate values that have commas.

    >>> axes(["lr=0.1,0.01", "hidden=64,32;128"])
    {'lr': ['0.1', '0.01'], 'hidden': ['64,32', '128']}

    Raises: UsageError for other texts, equal values, and options that cannot be varied or are given twice.
    """
    found: dict[str, list[str]] = {}
    for text in sweeps:
        name, _, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("_", "-")
        name = RENAMED.get(name.replace("-", "_"), name).replace("_", "-")
        parts = [part.strip() for part in values.split(";" if ";" in values else ",")]
        if not name or not all(parts) or len(set(parts)) < len(parts):
            raise UsageError(f"--sweep wants OPTION=VALUE,VALUE,... with different values, got {text!r}")
        if name.replace("-", "_") not in Options.__dataclass_fields__ or name in OWN or name in found:
            known = [one.replace("_", "-") for one in Options.__dataclass_fields__]
            near = meant(name, known) if name not in known else ""
            raise UsageError(
                f"--sweep cannot vary {name!r}{near}: it wants an option of hpcai.train, once, and none of {', '.join(OWN)}"
            )
        found[name] = parts
    return found


def runs(arguments: Sequence[str], sweeps: Sequence[str]) -> list[tuple[list[str], Options]]:
    """For each combination of values: its further flags, which include its own folder below the run's, and all its options.

    Without a sweep there is one run without further flags. Raises: UsageError for invalid options, and more than MOST runs.
    """
    whole = parser.parse(arguments)
    varied = axes(sweeps)
    if not varied:
        return [([], whole)]
    for name in ("metrics_file", "trace_file"):
        if getattr(whole, name):
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(whole, name)} is one file for all runs of --sweep; leave it out"
            )
    count = math.prod(map(len, varied.values()))
    if count > MOST:
        raise UsageError(f"--sweep asks for {count:,} runs and allows {MOST:,} at most; vary fewer options or values")
    found = []
    for values in itertools.product(*varied.values()):
        pairs = list(zip(varied, values, strict=True))
        below = ",".join(f"{name}={value}" for name, value in pairs).replace("/", "_")
        if len(os.fsencode(below)) > NAME_BYTES:
            raise UsageError(
                f"--sweep names a folder by its values: {below[:60]!r}... has more than {NAME_BYTES} bytes; vary less"
            )
        flags = [f"--{name}={value}" for name, value in pairs] + [f"--run-dir={Path(str(whole.run_dir)) / below}"]
        if whole.checkpoint_dir:
            flags.append(f"--checkpoint-dir={whole.checkpoint_dir.rstrip('/')}/{below}")
        found.append((flags, parser.parse([*arguments, *flags])))
    return found
