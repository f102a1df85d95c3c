"""`python -m tests.fuzz_inputs`: damaged and odd inputs of all kinds, seeded, each with limits of time and memory (make fuzz-inputs).

An input may be refused by one line or be accepted; then it must give what is right. A fault is anything else: a traceback, more than
10 seconds, 512 MiB more than before, a file written elsewhere than in the input's own folder, or a result that is not right.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import io
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz_inputs import sandbox
from tests.fuzz_inputs.kind import Kind

KINDS = {
    "table": "datasets:table",
    "archive": "datasets:archive",
    "images": "datasets:images",
    "text": "datasets:text",
    "options": "options:options",
    "checkpoint": "checkpoints:checkpoint",
    "script": "scripts:script",
}


def main() -> int:
    """Make the inputs and print a line for each kind and for each fault; 1 if there is a fault, or too few inputs were tried."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="hpcai-fuzz-"))
    began, faults, tried = time.monotonic(), 0, 0
    try:
        for i, name in enumerate(options.kinds):
            share = range(options.first, options.first + options.inputs // len(options.kinds))
            until = began + 60 * options.minutes * (i + 1) / len(options.kinds)
            found, slowest = collections.Counter[str](), 0.0
            one, prepared = kind(name), folder / f"{name}-prepared"
            prepared.mkdir()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                one.prepare(prepared)
            last = time.monotonic()
            for finding in sandbox.findings(name, one, options.seed, share, folder):
                now = time.monotonic()
                slowest, last = max(slowest, now - last), now
                found[finding.outcome] += 1
                if finding.fault:
                    faults += 1
                    print(f"FAULT {name} {finding.number} ({finding.what}): {finding.fault}", flush=True)
                if now > until:
                    break
            tried += found.total()
            counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.items()))
            print(f"{name:10} {found.total()} inputs: {counts}; slowest {slowest:.1f} s", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{tried} inputs, seed {options.seed}: {faults} faults in {time.monotonic() - began:.0f} s")
    return 1 if faults or tried == 0 else 0


def kind(name: str) -> Kind:
    """The kind of that name; its module is loaded by the first use."""
    module, attribute = KINDS[name].split(":")
    return getattr(importlib.import_module(f"tests.fuzz_inputs.{module}"), attribute)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.fuzz_inputs", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="how many, over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long, with fewer inputs")
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
