"""Batch scripts made of hostile texts: refused in a line, or bash under a pretended Slurm gets what was given and runs nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
from pathlib import Path
from typing import Any

from hpcai.errors import UsageError
from hpcai.submit.__main__ import main
from tests import hostile_submission
from tests.fuzz_inputs.kind import Kind


def _make(rng: random.Random, folder: Path) -> str:
    submission = hostile_submission.mutated_submission(rng)
    (folder / "submission").write_bytes(pickle.dumps(submission))
    return "a submission"


def _attempt(folder: Path) -> Any:
    argv, environment, name = pickle.loads((folder / "submission").read_bytes())
    (folder / name).mkdir()
    before, said, complained = dict(os.environ), io.StringIO(), io.StringIO()
    os.chdir(folder / name)
    os.environ.update(environment)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            code = main(argv)
    finally:
        os.environ.clear()
        os.environ.update(before)
        os.chdir(folder)
    if code:
        raise UsageError(complained.getvalue().rstrip("\n"))
    hostile_submission.check(said.getvalue(), folder, argv, environment)


script = Kind(_make, _attempt, lambda folder: None)
