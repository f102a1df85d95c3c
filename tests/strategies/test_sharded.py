"""Norms over ranks that have parts of a model."""

import json

import numpy as np
import pytest

import hpcai
from tests.train.test_loop import final, options, train
from tests.train.test_mesh import TINY

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.parametrize(
    "ranks, flags",
    [
        (1, ""),
        (3, ""),
        (3, "--zero 1"),
        (2, "--zero 2"),
        (2, "--zero 3"),
        (2, "--mesh tp=2"),
        (2, "--mesh pp=2 --tied"),
        (4, "--mesh pp=2,dp=2 --tied --zero 1"),
        (4, "--mesh tp=2,dp=2 --zero 3"),
        (4, "--mesh tp=2,pp=2"),
        (2, "--dtype bf16"),
        (2, "--dtype f16 --zero 2"),
    ],
)
def test_the_norm_of_weights_is_that_of_the_whole_model_on_any_mesh(tmp_path, ranks, flags):
    text = tmp_path / "text.txt"
    text.write_bytes(b"abcd efgh\n" * 300)
    summary = train(ranks, options(tmp_path, "--data", f"text:{text}", *TINY, "--tied", *flags.split()))
    found = final(tmp_path)["params"].astype(np.float64)
    assert summary["weight_norm"] == pytest.approx(np.linalg.norm(found), rel=1e-9)
    assert hpcai.load(tmp_path / "run").history == []  # within the first epoch
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["weight_norm"] == summary["weight_norm"]


def test_every_epoch_has_the_norm_of_weights_and_every_step_that_of_the_gradient(tmp_path):
    train(2, options(tmp_path, "--hidden", "8", "--epochs", "2", "--zero", "1"))
    norms = [record["weight_norm"] for record in hpcai.load(tmp_path / "run").history]
    assert len(norms) == 2
    assert norms[-1] == pytest.approx(np.linalg.norm(final(tmp_path)["params"].astype(np.float64)))
    assert norms[0] != norms[1]
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(step["grad_norm"] > 0 and "weight_norm" not in step for step in steps)
