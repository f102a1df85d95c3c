"""Schedules: everything is done once and in an order that can be, bubbles are those of the papers, memory is bounded."""

from collections import Counter

import pytest

from hpcai.errors import UsageError
from hpcai.parallel import schedules

RANKS = (1, 2, 3, 4, 5, 8)
EQUAL = {"F": 1.0, "I": 1.0, "W": 1.0}


def cases():
    for name in schedules.NAMES:
        for ranks in RANKS:
            for micros in (1, 2, 3, ranks, 2 * ranks, 16, 33):
                for chunks in (2, 3) if name == "interleaved" else (1,):
                    if name != "interleaved" or ranks == 1 or micros % ranks == 0:
                        yield name, ranks, micros, chunks


CASES = sorted(set(cases()))


@pytest.mark.parametrize("name, ranks, micros, chunks", CASES)
def test_every_stage_sees_every_micro_batch_once_each_way_and_nothing_waits_for_itself(name, ranks, micros, chunks):
    plan = schedules.plan(name, ranks, micros, chunks)
    for order in plan:
        counts = Counter(order)
        assert max(counts.values()) == 1
        kinds = "FIW" if name == "zb-h1" else "FB"
        assert counts.keys() == {schedules.Action(k, m, c) for k in kinds for m in range(micros) for c in range(chunks)}
    timelines = schedules.simulate(plan, EQUAL, wire_s=0.1)  # raises if it cannot be
    done = {}
    for rank, works in enumerate(timelines):
        for work in works:
            done[work.action.kind, work.action.chunk * ranks + rank, work.action.micro] = work
    for (kind, stage, micro), work in done.items():
        if kind == "F" and stage:
            assert work.start >= done["F", stage - 1, micro].end
        if kind in "BI" and stage < ranks * chunks - 1:
            assert work.start >= done[kind, stage + 1, micro].end
        if kind == "W":
            assert work.start >= done["I", stage, micro].end


@pytest.mark.parametrize("name, ranks, micros, chunks", [case for case in CASES if case[2] >= case[1]])
def test_bubbles_are_those_of_the_papers(name, ranks, micros, chunks):
    plan = schedules.plan(name, ranks, micros, chunks)
    found = schedules.bubble(schedules.simulate(plan, EQUAL))
    assert found == pytest.approx(schedules.bubble_in_theory(name, ranks, micros, EQUAL, chunks), abs=1e-9)


@pytest.mark.parametrize("ranks", RANKS)
def test_what_is_kept_is_bounded(ranks):
    def most(order):
        kept, peak = 0, 0
        for action in order:
            kept += {"F": 1, "B": -1, "W": -1, "I": 0}[action.kind]
            peak = max(peak, kept)
        return peak

    micros = 4 * ranks
    assert [most(order) for order in schedules.plan("gpipe", ranks, micros)] == [micros] * ranks
    assert [most(order) for order in schedules.plan("1f1b", ranks, micros)] == [ranks - r for r in range(ranks)]
    assert max(most(order) for order in schedules.plan("zb-h1", ranks, micros)) == ranks


def test_a_plan_that_waits_for_itself_is_noticed():
    plan = schedules.plan("gpipe", 2, 1)
    with pytest.raises(RuntimeError, match="the plan has a deadlock"):
        schedules.simulate((plan[0][::-1], plan[1]), EQUAL)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("interleaved", 4, 6, 2), "--micro-batches divisible by pp=4, got 6; take 4 or 8"),
        (("1f1b", 4, 6, 2), "--pipeline-chunks 2 is for --pipeline-schedule interleaved"),
        (("best", 4, 6, 1), "unknown; choose one of gpipe, 1f1b, interleaved, zb-h1"),
    ],
)
def test_schedules_that_cannot_be(arguments, words):
    with pytest.raises(UsageError, match=words):
        schedules.plan(*arguments)
