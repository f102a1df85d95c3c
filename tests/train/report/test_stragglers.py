"""The rank that the others wait for is named, and what it cost is about what it took."""

import time

import pytest

from hpcai.comm import threads
from hpcai.train import loop
from hpcai.train.loop import fit
from hpcai.train.options import parser
from hpcai.train.report import stragglers, summary

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
    chosen = parser.parse(["--run-dir", str(tmp_path), "--steps", str(STEPS), "--hidden", "16", "--batch", "60", *flags.split()])
    said = threads.run(3, lambda comm: fit(chosen, comm))[0]["waiting"]
    assert said["late_rank"] == 1
    assert len(said["waited_s"]) == 3
    lost_s = NAP_S * (STEPS - 1)  # the first step does not count
    assert 0.5 * lost_s < said["cost_s"] < 3 * lost_s + 5  # on a busy machine the others are late too
    assert stragglers.row({"waiting": said})[0][1].endswith("for rank 1")


class Clock:
    """Seconds that pass as a test says."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Comm:
    """A rank and what others say to `allgather_object`; it has waited in the world and in one communicator split from it."""

    def __init__(self, *others):
        self.others, self.size = others, 1 + len(others)
        self.waited_s, self.family = 3.0, [self, type("Split", (), {"waited_s": 4.0})()]

    def allgather_object(self, mine):
        return [mine, *self.others]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stragglers, "perf_counter", clock)
    return clock


def made(comm, clock, *steps):
    """Counted steps, each (seconds, waited in the world, waited in the other communicator), with a second between them."""
    counting = stragglers.Waiting(comm)
    for seconds, *waited in steps:
        with counting.counted():
            clock.now += seconds
            for one, more in zip(comm.family, waited, strict=True):
                one.waited_s += more
        clock.now += 1.0
        comm.waited_s += 0.125
    return counting


FIRST, SECOND, THIRD, FOURTH = (10.0, 6.0, 2.0), (2.0, 0.5, 0.25), (3.0, 0.0, 1.0), (1.0, 0.125, 0.0)


@pytest.mark.parametrize(
    "steps, waited_s, spent_s",
    [
        ([], 0.0, 0.0),
        ([FIRST], 0.0, 0.0),
        ([FIRST, SECOND], 0.75, 2.0),
        ([FIRST, SECOND, THIRD], 1.75, 5.0),
        ([FIRST, SECOND, THIRD, FOURTH], 1.875, 6.0),
    ],
)
def test_every_step_but_the_first_is_counted_and_nothing_between_them(clock, steps, waited_s, spent_s):
    counting = made(Comm(), clock, *steps)
    assert (counting.waited_s, counting.spent_s, counting.steps) == (waited_s, spent_s, len(steps))


def test_a_step_that_failed_is_not_counted(clock):
    comm = Comm()
    counting = made(comm, clock, FIRST, SECOND)
    with pytest.raises(KeyError), counting.counted():
        clock.now += 50
        comm.waited_s += 20
        raise KeyError
    assert (counting.waited_s, counting.spent_s, counting.steps) == (0.75, 2.0, 2)


def test_the_share_is_of_the_slowest_ranks_time(clock):
    """Three ranks waited 0.75, 0.25 and 1.75 s: the others 1 s more on average than rank 1, in up to 4 s of steps."""
    counting = made(Comm((0.25, 4.0), (1.75, 3.0)), clock, FIRST, SECOND)
    counting.settle()
    assert counting.summary == {"waited_s": [0.75, 0.25, 1.75], "late_rank": 1, "cost_s": 1.0, "share": 0.25}
    two = made(Comm((1.0, 2.5)), clock, FIRST, SECOND)
    two.settle()
    assert two.summary == {"waited_s": [0.75, 1.0], "late_rank": 0, "cost_s": 0.25, "share": 0.1}


@pytest.mark.parametrize("others, steps", [([], [FIRST, SECOND]), ([(0.0, 0.0)], [FIRST]), ([(1.0, 0.0)], [FIRST, SECOND])])
def test_one_rank_or_one_step_leaves_nothing_to_say(clock, others, steps):
    counting = made(Comm(*others), clock, *steps)
    counting.settle()
    assert counting.summary is None


def test_ranks_that_wait_alike_cost_nothing_and_the_lowest_is_named():
    assert stragglers.summarised([2.0, 2.0, 2.0], 10.0) == {"waited_s": [2.0] * 3, "late_rank": 0, "cost_s": 0.0, "share": 0.0}
    assert stragglers.summarised([0.0, 0.0], 10.0)["cost_s"] == 0.0
    tied = stragglers.summarised([4.0, 1.0, 1.0], 10.0)
    assert (tied["late_rank"], tied["cost_s"], tied["share"]) == (1, 1.5, 0.15)


@pytest.mark.parametrize("share, shown", [(0.0, False), (0.049, False), (0.05, True), (0.051, True), (1.0, True)])
def test_a_cost_is_shown_from_a_twentieth_of_the_time_on(share, shown):
    rows = stragglers.row({"waiting": {"waited_s": [1.0, 0.0], "late_rank": 1, "cost_s": 1.0, "share": share}})
    assert bool(rows) == shown


def test_one_rank_waits_for_nobody(tmp_path):
    chosen = parser.parse(["--run-dir", str(tmp_path), "--steps", "3", "--hidden", "16"])
    said = threads.run(1, lambda comm: fit(chosen, comm))[0]
    assert "waiting" not in said
    assert "waiting" not in summary.table(said, [])


def test_little_waiting_is_not_shown():
    assert stragglers.row({"waiting": stragglers.summarised([0.5, 0.4], 100.0)}) == []
    assert stragglers.row({}) == []
    assert stragglers.row({"waiting": stragglers.summarised([30.0, 0.4], 100.0)}) == [
        ("waiting", "ranks waited 29.6 s (30% of the steps' time) for rank 1")
    ]
