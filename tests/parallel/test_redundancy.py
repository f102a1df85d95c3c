"""Copies of shards that neighbours keep."""

import pytest

from hpcai.comm import threads
from hpcai.strategies.redundant import Redundant
from hpcai.strategies.strategy import part
from hpcai.train import class_weights
from hpcai.train.inputs import load
from hpcai.train.replica import new_replica
from hpcai.train.step import train_step
from tests.train.elastic.runs import FLAGS
from tests.train.test_loop import options


@pytest.mark.parametrize("more", [(), ("--class-weights", "1,2,3,4,5,6,7,8,9,100")])
@pytest.mark.parametrize("optimizer", ["adam", "momentum", "sgd"])
def test_a_backup_has_the_bits_of_the_shard(tmp_path, optimizer, more):
    chosen = options(tmp_path, *FLAGS, "--zero", "1", "--redundancy", "1", "--optimizer", optimizer, "--clip-norm", "0.5", *more)

    def program(comm):
        dataset = class_weights.decided(chosen, load(chosen, comm), comm)
        mine = new_replica(chosen, dataset, comm)
        for at in range(5):
            share = slice(10 * comm.rank, 10 * comm.rank + 10)
            train_step(mine, dataset.x_train[share].astype("f8"), dataset.y_train[share], 10 * comm.size, at, 0.1)
        mine.mesh.dp.barrier()
        return mine.buffers.optimizer, part(mine.state, Redundant).backup.state

    for ranks in (2, 3):
        found = threads.run(ranks, program)
        for rank in range(ranks):
            for name, array in found[rank - 1][0].items():
                assert found[rank][1][name].tobytes() == array.tobytes()
