"""What the test that strikes ranks looks at in the end."""

import pytest

from tests import witness
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
