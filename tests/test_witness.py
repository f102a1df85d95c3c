"""What the test that strikes ranks looks at in the end."""

import signal

import pytest

from tests import verdicts, witness
from tests.train.test_loop import options, train

SAME = {"1": "step 9: a", "2": "step 9: a"}


def test_ranks_testify_to_the_same_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(witness.loop, "_finish", witness.loop._finish)
    monkeypatch.setattr(witness.MpiWire, "grow", witness.MpiWire.grow)
    witness.watch()
    train(2, options(tmp_path, "--hidden", "8", "--steps", "3"))
    assert len(list((tmp_path / "run").glob("ended-*"))) == 2
    assert witness.difference(tmp_path / "run", 2, 3) == ""
    assert "after 4 steps" in witness.difference(tmp_path / "run", 2, 4)


@pytest.mark.parametrize(
    "said, ranks, fine",
    [(SAME, 2, True), (SAME, 1, True), (SAME, 3, False), (SAME | {"2": "step 9: b"}, 2, False), ({"1": "step 8: a"}, 1, False)],
)
def test_ranks_that_say_different_things_are_seen(tmp_path, said, ranks, fine):
    for name, text in said.items():
        (tmp_path / f"ended-{name}").write_text(text)
    assert (witness.difference(tmp_path, ranks, 9) == "") == fine


def test_a_run_whose_ranks_differ_is_not_fine(tmp_path):
    drawn = verdicts.Drawn((), "shrink", False, False, False, [])
    (tmp_path / "summary.json").write_text('{"ranks": 4, "steps": 1, "test_loss": 0.5}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    for rank in range(4):
        (tmp_path / f"ended-{rank}").write_text("step 1: a" if rank != 2 else "step 1: b")
    found = verdicts.judged(drawn, 0, [], tmp_path, "", (0.5, 0.5))
    assert found.how not in verdicts.FINE
    assert "step 1: b" in found.said
    (tmp_path / "ended-2").write_text("step 1: a")
    assert verdicts.judged(drawn, 0, [], tmp_path, "", (0.5, 0.5)).how in verdicts.FINE
    assert verdicts.judged(drawn, -signal.SIGTERM, [], tmp_path, "", (0.5, 0.5)).how not in verdicts.FINE
