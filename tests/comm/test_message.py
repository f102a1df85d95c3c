import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.errors import RankMismatch


@pytest.mark.parametrize(
    "sent, wanted",
    [
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros((2, 3)), np.zeros(6)),
        (np.zeros(6), np.zeros(6, np.int64)),
        (np.zeros(5), np.zeros(6)),
        (np.zeros((1,) * 30), np.zeros((1,) * 31)),
    ],
    ids=lambda x: f"{x.dtype}{x.ndim}-{x.size}",
)
def test_an_array_of_another_dtype_or_shape_is_refused_where_it_is_received(sent, wanted):
    def program(comm):
        if comm.rank == 0:
            comm.send(sent, 1).wait()
            comm.send(np.arange(3.0), 1).wait()
            return None
        with pytest.raises(RankMismatch, match="rank 1 receives .* from rank 0, which sent .*: dtype and shape must be the same"):
            comm.receive(wanted.copy(), 0).wait()
        after = np.zeros(3)
        comm.receive(after, 0).wait()
        return after.tolist()

    assert threads.run(2, program)[1] == [0.0, 1.0, 2.0]
