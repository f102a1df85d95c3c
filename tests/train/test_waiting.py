"""The rank that the others wait for is named, and what it cost is about what it took."""

import time

import pytest

from hpcai.comm import threads
from hpcai.train import config, loop, summary, waiting
from hpcai.train.loop import fit

pytestmark = pytest.mark.usefixtures("clean_environment")

NAP_S, STEPS = 0.06, 20


@pytest.fixture
def late(monkeypatch):
    """Rank 1 of a training begins each step late."""
    inner = loop.train_step

    def train_step(mine, *arguments):
        if mine.mesh.world.rank == 1:
            time.sleep(NAP_S)
        return inner(mine, *arguments)

    monkeypatch.setattr(loop, "train_step", train_step)


@pytest.mark.parametrize("flags", ["", "--mesh dp=3", "--zero 1"])
def test_a_late_rank_is_named_with_its_cost(tmp_path, late, flags):
    chosen = config.parse(["--run", str(tmp_path), "--steps", str(STEPS), "--hidden", "16", "--batch", "60", *flags.split()])
    said = threads.run(3, lambda comm: fit(chosen, comm))[0]["waiting"]
    assert said["late_rank"] == 1
    assert len(said["waited_s"]) == 3
    lost_s = NAP_S * (STEPS - 1)  # the first step does not count
    assert 0.5 * lost_s < said["cost_s"] < 3 * lost_s + 5  # on a busy machine the others are late too
    assert waiting.row({"waiting": said})[0][1].endswith("for rank 1")


def test_one_rank_waits_for_nobody(tmp_path):
    chosen = config.parse(["--run", str(tmp_path), "--steps", "3", "--hidden", "16"])
    said = threads.run(1, lambda comm: fit(chosen, comm))[0]
    assert "waiting" not in said
    assert "waiting" not in summary.table(said, [])


def test_little_waiting_is_not_shown():
    assert waiting.row({"waiting": waiting.summarised([0.5, 0.4], 100.0)}) == []
    assert waiting.row({}) == []
    assert waiting.row({"waiting": waiting.summarised([30.0, 0.4], 100.0)}) == [
        ("waiting", "ranks waited 29.6 s (30% of the steps' time) for rank 1")
    ]
