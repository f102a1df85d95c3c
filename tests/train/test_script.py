"""A script that trains a model and data of its own, under a launcher: killed and gone on with, on any number of ranks, by name too."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

import hpcai
from hpcai.comm.wires.ulfm import RECOVERABLE
from hpcai.train import resume
from tests.command import children, end, needs_mpirun, run, start, trains, wait_for
from tests.train.elastic.runs import ulfm

SCRIPT = Path(__file__).parents[2] / "examples" / "own_model.py"
pytestmark = [
    needs_mpirun,
    pytest.mark.skipif(not SCRIPT.exists(), reason="installed without examples"),
    pytest.mark.timeout(120),
]


def script(ranks, folder, **options):
    """Its exit code and what it says."""
    words = [f"{name}={value}" for name, value in ({"run_dir": folder} | options).items()]
    return run(ranks, *words, program=(SCRIPT,), limit=100)


def test_it_comes_to_the_same_on_any_number_of_ranks(tmp_path):
    losses = []
    for ranks in (1, 2, 4):
        code, out, err = script(ranks, tmp_path / str(ranks), dtype="f64", epochs=12, zero=1)
        assert code == 0, err
        assert out.splitlines()[-1].startswith("[0 1 2] ")
        losses.append(float(out.split()[-1]))
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-9)
    assert len(SCRIPT.read_text().splitlines()) <= 30


COMPRESSED = {"compress": "int8", "compress_smallest": 1, "zero": 1, "checkpoint_steps": 10}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that is not killed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    code, _, err = script(2, folder, epochs=30, **COMPRESSED)
    assert code == 0, err
    return folder


@pytest.mark.parametrize("then", [2, 1, 4])
def test_it_is_killed_and_goes_on(tmp_path, then, undisturbed):
    """On as many ranks to the same bits."""
    words = [f"{name}={value}" for name, value in COMPRESSED.items()]
    process = start(2, f"run_dir={tmp_path / 'killed'}", "epochs=100000", *words, program=(SCRIPT,))
    try:
        wait_for(lambda: (tmp_path / "killed").exists() and resume.newest(tmp_path / "killed"), limit=60)
        os.kill(children(process, b"own_model.py")[1], signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode != 0
    finally:
        end(process)
    code, _, err = script(then, tmp_path / "killed", epochs=30, resume="auto", **COMPRESSED)
    assert code == 0, err
    assert "continuing after step" in err
    whole, killed = hpcai.load(undisturbed), hpcai.load(tmp_path / "killed")
    assert whole.step == killed.step
    for name, array in whole.parameters.items():
        if then == 2:
            assert killed.parameters[name].tobytes() == array.tobytes()
        else:
            assert np.isfinite(killed.parameters[name]).all()
    losses = [one.history[-1]["test_loss"] for one in (whole, killed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12 if then == 2 else 0.2)


def test_the_same_by_its_name_on_the_command_line(tmp_path):
    own = ["--model", f"{SCRIPT}:model", "--data", f"{SCRIPT}:data"]
    flags = ["--lr", "0.01", "--epochs", "2", "--zero", "1", "--run-dir", str(tmp_path / "command")]
    code, _, err = run(2, *own, *flags)
    assert code == 0, err
    code, _, err = script(2, tmp_path / "script", epochs=2, zero=1)
    assert code == 0, err
    command, other = (hpcai.load(tmp_path / name).parameters for name in ("command", "script"))
    assert all(command[name].tobytes() == array.tobytes() for name, array in other.items())


@ulfm
def test_ranks_that_are_started_later_make_it_too(tmp_path):
    """By the functions' names."""
    launcher, said = ["--with-ft", "ulfm", "--prtemca", RECOVERABLE, "1"], tmp_path / "stderr"
    own = ["--model", f"{SCRIPT}:model", "--data", f"{SCRIPT}:data", "--run-dir", str(tmp_path / "run")]
    process = start(3, *own, "--epochs", "100000", "--lr", "0.01", "--elastic", "grow", launcher=launcher, errors=said)
    try:
        wait_for(lambda: trains(tmp_path / "run"), limit=60)
        ranks = children(process)
        for done, victim in enumerate((2, 0)):
            os.kill(ranks[victim], signal.SIGKILL)
            wait_for(lambda: said.read_text().count("3 go on after step") > done, limit=60)  # noqa: B023
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 85, said.read_text()
    finally:
        end(process)
    assert hpcai.load(tmp_path / "run").step > 0


def test_a_mistake_is_one_clear_line_on_all_ranks(tmp_path):
    for options, words in (
        ({"lr": "high"}, "lr wants a number above 0"),
        ({"steps_": "3"}, "there is no option 'steps_' (is steps meant?)"),
        ({"compress": "int9"}, "int9"),
    ):
        code, _, err = script(3, tmp_path / "run", **options)
        assert code == 2, err
        assert words in err
        assert not (tmp_path / "run").exists()


ELASTIC = """
import os
import sys
import hpcai
from examples import own_model

if __name__ == "__main__":
    before = hpcai.init()
    trained = hpcai.fit(own_model.model, own_model.data, lr=0.01, **dict(word.split("=") for word in sys.argv[1:]))
    total = trained.comm.allgather_object(trained.comm.rank)
    if trained.comm.rank == 0:
        print("behind fit", total, trained.predict([[0.1, 0.1]]).tolist(), trained.summary["steps"], file=sys.stderr)
"""


def elastic_script(tmp_path, ranks, *words, grow, text=ELASTIC, victims=(1,)):
    """Start it, and kill ranks when it trains, each time waiting for the others to go on."""
    (tmp_path / "mine.py").write_text(text)
    launcher = ["--with-ft", "ulfm", *(["--prtemca", RECOVERABLE, "1"] if grow else [])]
    said = tmp_path / "stderr"
    words = [*words, f"run_dir={tmp_path / 'run'}", f"elastic={'grow' if grow else 'shrink'}"]
    process = start(
        ranks, *words, program=(tmp_path / "mine.py",), launcher=launcher, errors=said, PYTHONPATH=str(SCRIPT.parents[1])
    )
    try:
        wait_for(lambda: trains(tmp_path / "run"), limit=60)
        there = children(process, b"mine.py")
        for done, victim in enumerate(victims, 1):
            os.kill(there[victim], signal.SIGKILL)
            left = ranks if grow else ranks - done
            wait_for(lambda: said.read_text().count(f"{left} go on after step") >= (done if grow else 1), limit=60)  # noqa: B023
        return process, said
    except BaseException:
        end(process)
        raise


@ulfm
@pytest.mark.parametrize("grow", [False, True])
def test_a_script_goes_on_without_a_rank_and_what_stands_behind_fit_runs_on_those_that_were_there(tmp_path, grow):
    process, said = elastic_script(tmp_path, 3, "epochs=100", "dtype=f64", grow=grow)
    try:
        assert process.wait(100) == 0, said.read_text()
    finally:
        end(process)
    assert f"behind fit {[0, 1]} [0] {100 * 13}" in said.read_text()
    loss = hpcai.load(tmp_path / "run").history[-1]["test_loss"]
    code, _, err = script(2, tmp_path / "undisturbed", epochs=100, dtype="f64")
    assert code == 0, err
    assert loss == pytest.approx(hpcai.load(tmp_path / "undisturbed").history[-1]["test_loss"], rel=1e-6)


@ulfm
@pytest.mark.parametrize("grow", [False, True])
def test_a_script_that_is_asked_to_leave_ends_with_85(tmp_path, grow):
    process, said = elastic_script(tmp_path, 3, "epochs=1000000", grow=grow)
    try:
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 85, said.read_text()
    finally:
        end(process)
    assert hpcai.load(tmp_path / "run").step > 0


def ended(process, said, limit=60):
    """The exit code of a script that has nothing left to do, and what it said."""
    try:
        return process.wait(limit), said.read_text()
    finally:
        end(process)


@ulfm
def test_the_communicator_from_before_a_failure_names_the_one_that_is_left(tmp_path):
    text = ELASTIC + "    before.allgather_object(1)\n"
    code, err = ended(*elastic_script(tmp_path, 3, "epochs=60", grow=False, text=text))
    assert code != 0
    assert "went on without this communicator: take Trained.comm, or hpcai.init()" in err


@ulfm
def test_a_failure_behind_fit_is_no_success_though_one_was_outlived_before(tmp_path):
    text = f"{ELASTIC}    if trained.comm.rank == 1:\n        os.kill(os.getpid(), 9)\n    trained.comm.allgather_object(1)\n"
    code, err = ended(*elastic_script(tmp_path, 3, "epochs=60", grow=False, text=text))
    assert "behind fit" in err
    assert code == 1


@ulfm
def test_a_script_whose_ranks_have_all_failed_asks_to_be_started_again(tmp_path):
    code, err = ended(*elastic_script(tmp_path, 2, "epochs=150", grow=True, victims=(0, 1)))
    assert code == 85
    assert "the code after fit was not run" in err
    assert hpcai.load(tmp_path / "run").step == 150 * 13


CATCHING = """
import math
import sys
from pathlib import Path

import hpcai
from hpcai.errors import Leave, NonFiniteError
from tests.train import mine

class Failing(mine.Program):
    def loss_and_gradients(self, params, x, target):
        loss, gradients = super().loss_and_gradients(params, x, target)
        return math.nan if Path(__file__).with_name("fail").exists() else loss, gradients

def model():
    return Failing()

if __name__ == "__main__":
    try:
        hpcai.fit(model, mine.points, **dict(word.split("=") for word in sys.argv[1:]))
    except (Leave, NonFiniteError):
        comm = hpcai.init()
        print("caught", comm.allgather_object(comm.rank), file=sys.stderr, flush=True)
        sys.exit(3)
"""


@ulfm
@pytest.mark.parametrize("how", ["asked to leave", "a loss that is none"])
def test_a_script_that_catches_how_its_run_ended_goes_on_and_has_its_own_exit_code(tmp_path, how):
    """On the ranks that were there: those that came later do not answer."""
    process, said = elastic_script(tmp_path, 3, "epochs=1000000", grow=True, text=CATCHING)
    if how == "asked to leave":
        process.send_signal(signal.SIGUSR1)
    else:
        (tmp_path / "fail").touch()
    code, err = ended(process, said)
    assert "caught [0, 1]" in err
    assert code == 3
