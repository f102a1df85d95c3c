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
    monkeypatch.setattr("hpcai.comm.stall._set_s", misuse.CELL_S)
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
