"""Read options from flags, --config FILE, HPCAI_ variables or Python, fill in defaults, and check them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from hpcai import environment
from hpcai.data import sources
from hpcai.optim.table import OPTIMIZERS
from hpcai.train.options import checks, given, own_name
from hpcai.train.options.options import OWN_LR, RENAMED, Options

_DESCRIPTION = """Train a model on all ranks that the launcher started, synchronously and data-parallel:

  mpirun -n 4 python -m hpcai.train --data fashion-mnist --model cnn --epochs 5

Every option can also be set in a YAML file (--config FILE) or in a variable HPCAI_OPTION (HPCAI_LR=0.1, HPCAI_DATA_DIR).
Flags win over variables, and variables over files. $HPCAI_DATA is a data set, like --data, or a folder, like HPCAI_DATA_DIR."""


def parse(arguments: Sequence[str]) -> Options:
    """Return the options from flags, the environment and files. Each is checked; defaults that depend on others are filled in.

    Raises: UsageError, one line. `--help` and `--print_config` print and raise SystemExit(0).
    """
    found, printing = given.given(Options, _DESCRIPTION, arguments, _variables())
    options = Options(**found)
    if printing:
        print("\n".join(f"{name}: {json.dumps(value)}" for name, value in dataclasses.asdict(options).items()))
        raise SystemExit(0)
    return _filled(options)


def of(values: dict[str, Any]) -> Options:
    """Return options from Python values, checked and filled in as in `parse`. None means not given. Raises: UsageError."""
    return _filled(Options(**given.from_python(Options, values)))


def asks_only(arguments: Sequence[str]) -> bool:
    """Return whether the arguments ask only for text (--help, --print_config), not for training."""
    return any(a in ("-h", "--help") or a.startswith(("--print_config", "--print-config")) for a in arguments)


def _variables() -> dict[str, str]:
    """Return the values of HPCAI_ variables by option name, and of HPCAI_CONFIG. HPCAI_DATA is left out if it is a folder."""
    names = ["config", *(field.name for field in dataclasses.fields(Options) if field.name != "data" or sources.variable()[0])]
    names += [name for name in RENAMED if name.upper() not in environment.VARIABLES]
    return {name: os.environ[given.variable(name)] for name in names if given.variable(name) in os.environ}


def _filled(o: Options) -> Options:
    """Fill in defaults that depend on other options, and check all."""
    model = o.model or ("gpt" if o.data.startswith("text:") else "mlp")
    filled = dataclasses.replace(
        o,
        model=model,
        epochs=o.epochs if o.epochs is not None or o.steps is not None else 20,
        lr=o.lr if o.lr is not None else _default_lr(o.optimizer),
        redundancy=o.redundancy if o.redundancy is not None else int(o.elastic != "never" and o.zero > 0),
        pipeline_chunks=o.pipeline_chunks if o.pipeline_chunks is not None else 2 if o.pipeline_schedule == "interleaved" else 1,
        run_dir=o.run_dir or f"runs/{own_name.called(o.data)}-{own_name.called(model)}",
    )
    checks.check(filled)
    return filled


def _default_lr(optimizer: str) -> float:
    row = OPTIMIZERS.get(optimizer)
    return OWN_LR if row is None else float(row.options["lr"])
