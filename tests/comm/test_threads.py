import numpy as np
import pytest

from hpcai.comm import threads
from hpcai.errors import StallError


def test_results_come_in_rank_order():
    assert threads.run(4, lambda comm, add: comm.rank + add, 10) == [10, 11, 12, 13]


def test_the_callers_error_comes_through():
    with pytest.raises(KeyError):
        threads.run(1, lambda comm: {}["missing"])


@pytest.mark.parametrize("node", ["0", "1"])
@pytest.mark.parametrize("what", ["receive", "allreduce", "barrier", "exchange", "split"])
def test_nobody_is_waited_for_beyond_the_limit(monkeypatch, node, what):
    monkeypatch.setenv("HPCAI_TIMEOUT_S", "0.3")
    monkeypatch.setenv("HPCAI_NODE", node)
    calls = {
        "receive": lambda comm: comm.irecv(np.zeros(3), 1).wait(),
        "allreduce": lambda comm: comm.allreduce(np.zeros(3)),
        "barrier": lambda comm: comm.barrier(),
        "exchange": lambda comm: comm.allgather_object(comm.rank),
        "split": lambda comm: comm.split(0),
    }
    with pytest.raises(StallError, match=r"rank [02] waited 0\.3 s in .* for rank 1, which did not come"):
        threads.run(3, lambda comm: calls[what](comm) if comm.rank != 1 else None)
