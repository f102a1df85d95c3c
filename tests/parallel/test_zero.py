"""Parameters of which every rank keeps a share, as layers see them."""

from hpcai.comm import threads
from hpcai.train.inputs import load
from hpcai.train.replica import new_replica
from tests.train.test_loop import options


def test_gathered_parameters_are_those_of_every_layer(tmp_path):
    def weights(comm, zero):
        chosen = options(tmp_path, "--hidden", "24", "--zero", zero)
        mine = new_replica(chosen, load(chosen, comm), comm)
        assert len(mine.weights) == len(mine.model.layers)
        return [{name: array.tolist() for name, array in layer.items()} for layer in mine.weights]

    (wanted,) = threads.run(1, lambda comm: weights(comm, "0"))
    assert any(wanted)
    assert threads.run(2, lambda comm: weights(comm, "3")) == [wanted, wanted]
