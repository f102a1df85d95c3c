"""The laws of test_parity.py again under real MPI: run by `mpirun -n {2,3,4} pytest`."""

import shutil

import numpy as np
import pytest

from hpcai.checkpoint import format
from hpcai.comm import threads
from hpcai.train import resume
from hpcai.train.loop import fit
from hpcai.train.options import parser
from tests import owned
from tests.parallel.test_parity import MODEL

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("clean_environment")]

SPLITS = {
    2: [
        "tp=2",
        "pp=2 --pipeline-schedule zb-h1",
        "pp=2 --pipeline-schedule interleaved",
        "dp=2 --zero 3",
        "dp=2 --zero 1 --overlap always",
    ],
    3: ["pp=3", "dp=3 --zero 2", "pp=3 --pipeline-schedule gpipe --recompute"],
    4: ["dp=2,tp=2 --zero 1", "tp=2,pp=2", "dp=2,pp=2 --zero 3 --pipeline-schedule zb-h1", "tp=4", "pp=4"],
}


@pytest.fixture
def folder(comm):
    """One folder for all ranks. (pytest's tmp_path, used by several processes, leaves folders open and warns at its end.)"""
    path = comm.on_root(lambda: owned.folder("mesh"))
    yield path
    comm.barrier()
    if comm.rank == 0:
        shutil.rmtree(path)


@pytest.mark.parametrize("case", range(5))
def test_a_mesh_of_processes_trains_the_model_of_one(folder, comm, case):
    splits = SPLITS.get(comm.size, [])
    if case >= len(splits):
        pytest.skip(f"{comm.size} ranks have {len(splits)} meshes to try")
    text = folder / "text.txt"
    content = np.random.default_rng(0).choice(np.frombuffer(b"abcd efgh\n", np.uint8), 4000)
    comm.on_root(lambda: text.write_bytes(content.tobytes()))
    flags = ["--data", f"text:{text}", *MODEL, "--batch", "24", "--dtype", "f64", "--steps", "10"]
    mine = parser.parse([*flags, "--mesh", *splits[case].split(), "--run-dir", str(folder / "mesh")])
    alone = parser.parse([*flags, "--micro-batches", "1", "--run-dir", str(folder / f"alone{comm.rank}")])
    found = fit(mine, comm)
    wanted = threads.run(1, lambda one: fit(alone, one))[0]
    assert found["epoch_losses"] == pytest.approx(wanted["epoch_losses"], rel=1e-10)
    assert found["test_loss"] == pytest.approx(wanted["test_loss"], rel=1e-10)

    def differences():
        one, all_ = (format.read(resume.newest(folder / run))[1].arrays for run in ("alone0", "mesh"))
        return {name: float(np.abs(all_[name] - array).max()) for name, array in one.items()}

    for name, difference in comm.on_root(differences).items():
        assert difference < 1e-10, name
