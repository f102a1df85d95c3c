"""What ranks that live owe to the gradient, after others were lost: as much as before, whatever their number is."""

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.reduce.combine import owed
from hpcai.train.inputs import load
from hpcai.train.replica import replica
from hpcai.train.state import residuals
from hpcai.train.step import train_step
from tests.train.test_loop import options

CODECS = ["int8", "sign", "powersgd:2", "topk:0.1", "int8sum", "bf16"]


def part_of_the_mean(mine):
    """What this rank owes to it."""
    flat, comm = np.zeros(mine.params.size), mine.mesh.dp
    for bucket, state in zip(mine.buckets, mine.reducer_states, strict=True):
        for start, kept in residuals._remembered(state, bucket.start):
            flat[start : start + kept.memory.size] = owed(kept, comm) / comm.size
    return flat


def test_a_copy_is_made_in_the_arrays_of_an_earlier_one_where_they_fit():
    state = [(np.arange(3.0), 7), np.ones((2, 2))]
    first = residuals.copied(state)
    second = residuals.copied(state, first)
    assert second[0][0] is first[0][0]
    assert second[1] is first[1]
    assert second[0][0] is not state[0][0]
    for other in (None, [], [(np.zeros(3), 0)], [None, None], [(np.zeros(4), 0), np.zeros(4)], "ab", [(1, 2), 3]):
        made = residuals.copied(state, other)
        assert made[0][0].tolist() == [0.0, 1.0, 2.0]
        assert made[0][1] == 7
        assert made[1].tolist() == [[1.0, 1.0], [1.0, 1.0]]
        assert made[0][0] is not state[0][0]


@pytest.mark.parametrize("compress", CODECS)
@pytest.mark.parametrize("before, live, after", [(3, 2, 2), (4, 1, 1), (3, 2, 5), (3, 3, 3)])
def test_what_is_owed_weighs_as_much_among_another_number_of_ranks(tmp_path, compress, before, live, after):
    flags = ["--hidden", "24", "--batch", "64", "--checkpoint-steps", "0", "--compress", compress, "--compress-smallest", "1"]
    chosen = options(tmp_path, *flags)

    def program(comm):
        dataset = load(chosen, comm)
        at_first, then = (comm.split(0 if comm.rank < size else None) for size in (before, after))
        mine = replica(chosen, dataset, at_first) if at_first is not None else None
        share = slice(10 * comm.rank, 10 * comm.rank + 10)
        for at in range(5 if mine is not None else 0):
            train_step(mine, dataset.x_train[share].astype("f4"), dataset.y_train[share], 10 * before, at, 0.1)
        if then is None:
            return None
        fresh = replica(chosen, dataset, then)
        if comm.rank >= live:
            return part_of_the_mean(fresh), np.zeros(fresh.params.size)
        residuals.carry_over(mine, fresh)
        return part_of_the_mean(fresh), part_of_the_mean(mine)

    found = [pair for pair in threads.run(max(before, after), program) if pair is not None]
    assert len(found) == after
    assert all(was.any() for _, was in found[:live])
    for now, was in found:
        np.testing.assert_allclose(now, was, rtol=1e-5, atol=1e-5 * np.abs(was).max())
