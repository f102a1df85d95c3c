"""A user's script is checked against the package's own types."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hpcai

RIGHT = """
import numpy as np
import hpcai
from hpcai import nn

def model(data: hpcai.data.Dataset) -> nn.Model:
    return nn.softmax(data.shape, data.outputs, nn.softmax_cross_entropy())

comm: hpcai.Communicator = hpcai.init()
trained: hpcai.Trained = hpcai.fit(model, (np.zeros((20, 2)), np.arange(20) % 2), comm, steps=3, after_epoch=print)
history: list[dict[str, object]] = [dict(epoch) for epoch in trained.history]
trained.save("weights.npz")
step: int = hpcai.load("runs/a").step
comm.iallreduce(np.ones(3)).wait()
try:
    comm.allreduce(np.ones(3), "mean")
except hpcai.errors.RankMismatch as error:
    code: int = error.exit_code
"""
WRONG = """
import hpcai
hpcai.fit(comm=3)
step: str = hpcai.load("runs/a").step
hpcai.init().allreduce([1.0], 7)
hpcai.nothing
"""


@pytest.mark.timeout(120)
def test_mypy_knows_the_public_names(tmp_path):
    pytest.importorskip("mypy")
    for name, text in (("right.py", RIGHT), ("wrong.py", WRONG)):
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "right.py", "wrong.py"]
    here = str(Path(hpcai.__file__).parents[1])  # which mypy does not find by itself where the install is editable
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": here})
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert not [line for line in lines if line.startswith("right.py")], done.stdout
    assert [int(line.split(":")[1]) for line in lines if line.startswith("wrong.py")] == [3, 4, 5, 5, 6], done.stdout
