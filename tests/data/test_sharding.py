import numpy as np
import pytest

from hpcai.data import sharding
from tests.laws import RANKS


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("n, batch", [(10, 3), (101, 10), (7, 7), (5, 8), (100, 25)])
def test_every_sample_comes_once_an_epoch_whatever_the_number_of_ranks(n, batch, size):
    per_epoch = sharding.steps_per_epoch(n, batch)
    for epoch in range(2):
        whole = []
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            index = sharding.global_batch(n, batch, 3, step)
            parts = [sharding.shard(index, rank, size) for rank in range(size)]
            assert np.concatenate(parts).tolist() == index.tolist()
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            whole += index.tolist()
        assert sorted(whole) == list(range(n))


@pytest.mark.parametrize("size", RANKS)
def test_grains_are_the_same_samples_on_any_number_of_ranks(size):
    for n, grain in ((0, 4), (3, 4), (50, 8), (64, 8), (10, 100)):
        index = np.arange(n)
        parts = [sharding.shard(index, rank, size, grain) for rank in range(size)]
        assert np.concatenate(parts).tolist() == index.tolist()
        assert all(len(part) == 0 or part[0] % grain == 0 for part in parts)
        assert max(map(len, parts)) - min(map(len, parts)) <= grain


def test_the_order_depends_on_seed_and_epoch_and_nothing_else():
    def epoch(seed, number):
        return sharding.global_batch(50, 50, seed, number).tolist()

    first = epoch(0, 0)
    assert epoch(1, 0) != first != epoch(0, 1)
    sharding._order.cache_clear()
    assert epoch(0, 0) == first


def test_a_ranks_first_sample_is_where_its_part_begins():
    for n, size, grain in ((10, 3, 1), (11, 4, 1), (50, 3, 8), (10, 4, 100), (0, 2, 4)):
        index, at = np.arange(n), 0
        for rank in range(size):
            assert sharding.first(n, rank, size, grain) == at or at == n <= sharding.first(n, rank, size, grain)
            at += len(sharding.shard(index, rank, size, grain))
    assert [sharding.first(11, rank, 4) for rank in range(4)] == [0, 2, 5, 8]
    assert [sharding.shard(np.arange(11), rank, 4).tolist()[:1] for rank in range(4)] == [[0], [2], [5], [8]]


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("grain", [1, 3, 4, 8, 100])
def test_a_rank_knows_where_its_part_begins(size, grain):
    for n in range(40):
        for rank in range(size):
            part = sharding.shard(np.arange(n), rank, size, grain)
            assert len(part) == 0 or sharding.first(n, rank, size, grain) == part[0]


def test_where_parts_of_a_batch_begin():
    """10 samples in grains of 4, the last of 2: a grain each, or the ranks of 2 get one and two."""
    assert [sharding.first(10, rank, 3) for rank in range(3)] == [0, 3, 6]
    assert [sharding.first(10, rank, 3, 4) for rank in range(3)] == [0, 4, 8]
    assert [sharding.first(10, rank, 2, 4) for rank in range(2)] == [0, 4]
