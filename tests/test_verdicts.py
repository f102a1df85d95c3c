"""What the test that strikes ranks calls fine."""

import signal

import pytest

from tests import verdicts
from tests.strikes import Strike


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


@pytest.mark.parametrize("ranks, fine", [(1, False), (2, True), (3, True), (4, True), (5, False)])
def test_a_spare_rank_that_is_lost_before_it_trains_is_counted_too(ranks, fine):
    """Of 4 and 3 that wait 5 are ended, of which recoveries list 3."""
    drawn = verdicts.Drawn((), "spares", False, False, True, [], thaws=(None,))
    said = "".join(
        f"hpcai: process {pid} is frozen and keeps others waiting in a sum; it is ended\n" for pid in (1, 2, 3, 3, 4, 5)
    )
    summary = {"ranks": ranks, "recoveries": [{"lost": [0, 1]}, {"lost": [0]}]}
    assert (verdicts.wrong_size(drawn, [Strike(0.0, 4, 1)], summary, said) == "") == fine
