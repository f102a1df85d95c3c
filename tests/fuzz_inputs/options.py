"""Files of options in YAML: what one accepts must be what the same options give as flags."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import yaml

from hpcai.train.options import parser
from hpcai.train.options.options import Options
from tests.fuzz_inputs import damage
from tests.fuzz_inputs.kind import Kind

GOOD: dict[str, Any] = {
    "data": "digits",
    "model": "mlp",
    "hidden": [32, 16],
    "lr": 0.01,
    "epochs": 3,
    "batch": 64,
    "optimizer": "momentum",
    "momentum": 0.9,
    "schedule": "cosine",
    "warmup": 4,
    "clip": 1.0,
    "seed": 7,
    "compress": "int8",
    "compress_layers": {"linear1.*": "none"},
    "resume": "auto",
    "signals": "USR1",
    "keep": 3,
    "plot": False,
    "tied": False,
    "stall_timeout": 20.5,
}
ODD = (
    None,
    True,
    -1,
    0,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    "",
    " ",
    "no",
    "1_0",
    [],
    {},
    [[1]],
    {"a": {"b": 1}},
    "a\nb",
    "\0",
    "x" * 9999,
)


def _bomb(rng: random.Random) -> str:
    """Aliases of aliases, a million keys, or brackets without end."""
    kind = rng.randrange(4)
    if kind == 0:
        rows = ["a: &a [x, x, x, x, x, x, x, x, x]"]
        rows += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)]
        return "\n".join(rows)
    if kind == 1:
        return "\n".join(f"k{i}: 1" for i in range(300_000))
    if kind == 2:
        return "[" * 100_000
    return "hidden: " + "{a: " * 5000


def _make(rng: random.Random, folder: Path) -> str:
    path = folder / "options.yaml"
    if rng.random() < 0.02:
        path.write_text(_bomb(rng))
        return "a bomb of YAML"
    chosen = {key: GOOD[key] for key in rng.sample(sorted(GOOD), rng.randint(0, 8))}
    if rng.random() < 0.5:
        names = [field.name for field in dataclasses.fields(Options)]
        chosen[rng.choice([*names, "unknown", "config", "--lr", "lr.x"])] = rng.choice(ODD)
    text = yaml.safe_dump(chosen, allow_unicode=rng.random() < 0.5)
    if rng.random() < 0.5:
        text = damage.text_of(rng, text)
    raw = text.encode("utf-8", "replace")
    path.write_bytes(damage.bytes_of(rng, raw) if rng.random() < 0.2 else raw)
    return "options"


def _attempt(folder: Path) -> Any:
    return dataclasses.astuple(parser.parse(["--config", str(folder / "options.yaml")]))


def _as_flags(folder: Path) -> Any:
    flags = []
    content = (folder / "options.yaml").read_bytes()
    nothing = {key for key, value in yaml.safe_load(content).items() if value is None}
    for key, value in yaml.load(content, yaml.BaseLoader).items():  # which leaves all values the texts that they are
        if key in nothing:
            continue
        pairs = [f"{a}={b}" for a, b in value.items()] if isinstance(value, dict) else value
        flags.append(f"--{key.replace('_', '-')}={pairs if isinstance(pairs, str) else ','.join(pairs)}")
    return dataclasses.astuple(parser.parse(flags))


options = Kind(_make, _attempt, _as_flags)
