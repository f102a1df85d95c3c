"""What ranks that live owe to the gradient, after others were lost: as much as before, whatever their number is."""

import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.reduce import states
from hpcai.reduce.combine import owed
from hpcai.strategies.compressed import Compressed
from hpcai.strategies.strategy import part
from hpcai.train.inputs import load
from hpcai.train.replica import new_replica
from hpcai.train.state import transfer
from hpcai.train.step import train_step
from tests.train.test_loop import options

CODECS = ["int8", "sign", "powersgd:2", "topk:0.1", "int8sum", "bf16"]


def part_of_the_mean(mine):
    """What this rank owes to it."""
    flat, comm = np.zeros(mine.params.size), mine.mesh.dp
    for bucket, state in zip(mine.buckets, part(mine.state, Compressed).states, strict=True):
        for start, kept in states.remembered(state, bucket.start):
            flat[start : start + kept.memory.size] = owed(kept, comm) / comm.size
    return flat


@pytest.mark.parametrize("compress", CODECS)
@pytest.mark.parametrize("before, live, after", [(3, 2, 2), (4, 1, 1), (3, 2, 5), (3, 3, 3)])
def test_what_is_owed_weighs_as_much_among_another_number_of_ranks(tmp_path, compress, before, live, after):
    flags = ["--hidden", "24", "--batch", "64", "--checkpoint-steps", "0", "--compress", compress, "--compress-smallest", "1"]
    chosen = options(tmp_path, *flags)

    def program(comm):
        dataset = load(chosen, comm)
        at_first, then = (comm.split(0 if comm.rank < size else None) for size in (before, after))
        mine = new_replica(chosen, dataset, at_first) if at_first is not None else None
        share = slice(10 * comm.rank, 10 * comm.rank + 10)
        for at in range(5 if mine is not None else 0):
            train_step(mine, dataset.x_train[share].astype("f4"), dataset.y_train[share], 10 * before, at, 0.1)
        if then is None:
            return None
        fresh = new_replica(chosen, dataset, then)
        if comm.rank >= live:
            return part_of_the_mean(fresh), np.zeros(fresh.params.size)
        transfer.carry_over(mine, fresh, set(range(live)))
        return part_of_the_mean(fresh), part_of_the_mean(mine)

    found = [pair for pair in threads.run(max(before, after), program) if pair is not None]
    assert len(found) == after
    assert all(was.any() for _, was in found[:live])
    for now, was in found:
        np.testing.assert_allclose(now, was, rtol=1e-5, atol=1e-5 * np.abs(was).max())
