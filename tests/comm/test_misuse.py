"""The misuse matrix (misuse.py) on threads as ranks, with and without shared memory, and in one launch under real MPI."""

import pytest

from hpcai.comm import threads
from tests.comm import misuse
from tests.command import needs_mpirun, run

ON_THREADS = [cell for cell in misuse.CELLS if not cell.only_mpi]


@pytest.mark.parametrize("shared", ["0", "1"])
@pytest.mark.parametrize("cell", ON_THREADS, ids=lambda cell: cell.name)
def test_on_threads(cell, shared, monkeypatch):
    monkeypatch.setenv("HPCAI_NODE", shared)
    monkeypatch.setattr("hpcai.comm.diagnosis.stall.waits.limit_s", misuse.CELL_S)
    said = threads.run(2, misuse.outcome, cell)
    assert not [text for text in said if text.startswith("WRONG")]


@needs_mpirun
@pytest.mark.timeout(150)
@pytest.mark.parametrize("shared", ["1", "0"])
def test_under_mpi(shared):
    code, out, err = run(2, program=("-m", "tests.comm.misuse"), limit=120, HPCAI_NODE=shared)
    print(out)
    assert code == 0, out[-2000:] + err[-4000:]
    assert f"{len(misuse.CELLS)} cells, 0 wrong" in out


STARTED_TWICE = """
import threading, hpcai, numpy as np
got = []
started = [threading.Thread(target=lambda: got.append(hpcai.init())) for _ in range(4)]
[thread.start() for thread in started], [thread.join() for thread in started]
assert len(set(map(id, got))) == 1
assert got[0].allreduce(np.ones(2))[0] == 2
"""
NOT_WAITED_FOR = """
import threading, hpcai, numpy as np
comm, carrier, gate = hpcai.init(), hpcai.Background(), threading.Event()
carrier.start(gate.wait, 5)
carrier.start(comm.allreduce, np.ones(3))
"""


@needs_mpirun
def test_init_from_threads_is_one_start():
    assert run(2, program=("-c", STARTED_TWICE))[0] == 0


@needs_mpirun
def test_a_program_that_does_not_wait_for_its_calls_ends_with_a_message():
    code, _, err = run(2, program=("-c", NOT_WAITED_FOR))
    assert code == 2
    assert "UsageError: leave while a Background carries calls of this thread" in err
