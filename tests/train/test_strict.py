"""What is written as JSON is JSON: no NaN, no Infinity."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import hpcai
from hpcai.comm import threads
from hpcai.train import between, strict
from hpcai.train.loop import fit
from hpcai.train.options import parser
from hpcai.train.outcome import Evaluation
from hpcai.train.report import summary
from hpcai.train.report.metrics import Metrics

STRICT = {"parse_constant": lambda word: pytest.fail(f"{word} is not JSON")}

OTHERS = {"strict.py", "format.py", "manifest.py", "shards.py", "parser.py", "convergence.py"}
"""Files that write numbers which are finite, or refuse others."""


def test_finite_values_are_as_json_writes_them():
    for value in (None, [1, 2.5, "NaN"], {"a": {"b": (1, True)}}, {}, 1e308):
        assert strict.dumps(value) == json.dumps(value)
        assert strict.dumps(value, indent=1) == json.dumps(value, indent=1)


@pytest.mark.parametrize("bad", [np.nan, float("inf"), -np.inf, np.float64("nan")])
def test_others_are_null_and_named(bad):
    value = {"a": [1.0, {"b": bad}], "c": (bad,), "d": 1}
    found = json.loads(strict.dumps(value), **STRICT)
    assert found == {
        "a": [1.0, {"b": None}],
        "c": [None],
        "d": 1,
        "not_finite": {"a.1.b": str(float(bad)), "c.0": str(float(bad))},
    }
    assert json.loads(strict.dumps([bad, 1]), **STRICT) == [None, 1]
    assert json.loads(strict.dumps(bad), **STRICT) is None


def test_a_line_of_metrics(tmp_path):
    metrics = Metrics(tmp_path / "m.jsonl", after_step=0)
    metrics.write({"step": 1, "loss": float("inf")})
    metrics.close()
    (line,) = (tmp_path / "m.jsonl").read_text().splitlines()
    assert json.loads(line, **STRICT) == {"step": 1, "loss": None, "not_finite": {"loss": "inf"}}


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize("regression", [False, True])
def test_a_run_whose_test_loss_is_not_finite(tmp_path, monkeypatch, capsys, regression):
    pytest.importorskip("matplotlib")
    x = np.random.default_rng(0).normal(size=(40, 3))
    np.savez(tmp_path / "d.npz", x=x, y=x[:, 0] if regression else np.arange(40) % 2)
    quantities = {"test_mae": float("inf"), "test_rmse": float("nan"), "test_r2": float("nan")} if regression else {}
    found = Evaluation(float("inf"), None if regression else 0.5, quantities, [], None)
    monkeypatch.setattr(between, "evaluate", lambda mine, dataset: found)
    flags = [
        "--data",
        f"npz:{tmp_path / 'd.npz'}",
        "--hidden",
        "4",
        "--steps",
        "2",
        "--plot",
        "--trace-file",
        str(tmp_path / "t.json"),
    ]
    options = parser.parse([*flags, "--run-dir", str(tmp_path / "run")])
    (found,) = threads.run(1, lambda comm: fit(options, comm))
    written = json.loads((tmp_path / "run/summary.json").read_text(), **STRICT)
    assert written == found
    assert written["test_loss"] is None
    assert written["not_finite"]["test_loss"] == "inf"
    assert "test loss      not finite" in capsys.readouterr().out
    assert summary.read(tmp_path / "run/summary.json") == found
    json.loads((tmp_path / "t.json").read_text(), **STRICT)
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        json.loads(line, **STRICT)


def test_nobody_else_writes_json_of_measurements():
    house = Path(hpcai.__file__).parent
    for path in [*(house / "train").glob("*.py"), *(house.parent / "bench").glob("*.py")]:
        if path.name not in OTHERS:
            assert not re.search(r"json\.dumps?\(", path.read_text().replace("strict.dumps(", "")), path
