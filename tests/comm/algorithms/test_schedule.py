import itertools

import pytest

from hpcai.comm.algorithms import schedule
from tests.laws import RANKS


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("lap", [schedule.reduce_scatter, schedule.allgather])
def test_what_left_sends_at_a_step_is_what_i_receive(lap, size):
    laps = [lap(rank, size) for rank in range(size)]
    for rank in range(size):
        for mine, left in zip(laps[rank], laps[rank - 1], strict=True):
            assert mine.receive == left.send


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("lap", [schedule.reduce_scatter, schedule.allgather])
def test_what_arrives_is_what_goes_on_at_the_next_step(lap, size):
    for rank in range(size):
        steps = lap(rank, size)
        assert all(now.receive == then.send for now, then in itertools.pairwise(steps))
        assert len({step.send for step in steps}) == size - 1


@pytest.mark.parametrize("size", RANKS)
def test_each_rank_ends_the_first_lap_with_its_own_chunk_and_begins_the_second_with_it(size):
    for rank in range(size):
        if size > 1:
            assert schedule.reduce_scatter(rank, size)[-1].receive == rank
            assert schedule.allgather(rank, size)[0].send == rank


@pytest.mark.parametrize("size", RANKS)
def test_every_share_is_folded_into_every_chunk_exactly_once(size):
    held = [{chunk: [rank] for chunk in range(size)} for rank in range(size)]
    for step in range(size - 1):
        sent = [list(held[rank][schedule.reduce_scatter(rank, size)[step].send]) for rank in range(size)]
        for rank in range(size):
            held[rank][schedule.reduce_scatter(rank, size)[step].receive] += sent[rank - 1]
    for rank in range(size):
        assert sorted(held[rank][rank]) == list(range(size))


@pytest.mark.parametrize("size", [2, 4, 8, 32])
def test_halving_partners_split_what_they_both_have_until_each_owns_one_chunk(size):
    every = [schedule.halving(rank, size) for rank in range(size)]
    for rank, steps in enumerate(every):
        have = range(size)
        for k, step in enumerate(steps):
            other = every[step.partner][k]
            assert (other.partner, other.keep, other.give) == (rank, step.give, step.keep)
            assert sorted([*step.keep, *step.give]) == list(have)
            have = step.keep
    assert sorted(steps[-1].keep[0] for steps in every) == list(range(size))
    assert all(len(steps[-1].keep) == 1 for steps in every)


@pytest.mark.parametrize("parts", RANKS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 101, 2**40 + 1])
def test_split_covers_everything_once_and_evenly(n, parts):
    pieces = [schedule.split(n, parts, i) for i in range(parts)]
    assert pieces[0].start == 0
    assert pieces[-1].stop == n
    assert all(a.stop == b.start for a, b in itertools.pairwise(pieces))
    lengths = [p.stop - p.start for p in pieces]
    assert max(lengths) - min(lengths) <= 1
