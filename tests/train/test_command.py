"""`mpirun -n N python -m hpcai.train` as a person meets it: real processes, real launcher."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcai.checkpoint import format
from hpcai.train import resume
from tests.command import children, end, environment, needs_mpirun, run, start, wait_for

LINE = "hpcai.train: error: "

pytestmark = needs_mpirun


def test_a_run_shows_its_result_and_writes_its_files(tmp_path):
    code, out, err = run(2, "--epochs", "3", "--batch", "64", "--run-dir", tmp_path)
    assert code == 0, err
    assert out.count("test accuracy") == 1
    assert str(tmp_path / "summary.json") in out
    assert err.count("epoch   3/3") == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["ranks"] == 2
    assert summary["test_accuracy"] > 0.9


def test_help_is_printed_once_and_starts_no_mpi():
    code, out, _ = run(3, "--help", limit=20)
    assert code == 0
    assert out.count("usage: mpirun -n RANKS python -m hpcai.train") == 1
    check = "import sys; from hpcai.train.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\nassert 'mpi4py.MPI' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, env=environment(), stdout=subprocess.DEVNULL)


def test_reproducible_training_gives_the_same_bits_on_any_number_of_processes(tmp_path):
    flags = ["--compress", "reproducible", "--steps", "100", "--hidden", "64,32", "--checkpoint-steps", "0"]
    found = []
    for ranks in (1, 2, 3, 4, 7):
        code, _, err = run(ranks, *flags, "--run-dir", tmp_path / str(ranks))
        assert code == 0, err
        arrays = format.read(resume.newest(tmp_path / str(ranks)))[1].arrays
        found.append({name: array.tobytes() for name, array in arrays.items()})
    assert all(other == found[0] for other in found)


def csv(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    return ["--data", f"csv:{tmp_path / 't.csv'}", "--label-column", "y"]


def short_text(tmp_path):
    (tmp_path / "t.txt").write_text("short")
    return ["--data", f"text:{tmp_path / 't.txt'}"]


def truncated_idx(tmp_path):
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(b"\0\0\x08\x03" + b"\0\0\0\x09" * 3 + b"123")
    return ["--data", "mnist", "--data-dir", tmp_path]


def corrupt_checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step-000000005"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    return ["--resume", "auto"]


def in_the_way(tmp_path):
    (tmp_path / "file").touch()
    return ["--run-dir", tmp_path / "file" / "below"]


BAD = {
    "unknown option": (lambda p: ["--bacth", "3"], 2, "--bacth"),
    "wrong type": (lambda p: ["--batch", "many"], 2, "many"),
    "unknown data set": (lambda p: ["--data", "cifar"], 2, "cifar"),
    "truncated IDX": (truncated_idx, 1, "truncated"),
    "text in a CSV": (lambda p: csv(p, "x,y\n1,2\none,2\n3,4\n"), 1, "'one' is not a number"),
    "ragged CSV": (lambda p: csv(p, "x,y\n1,2\n1\n3,4\n"), 1, "1 cell where the header has 2"),
    "batch below ranks": (lambda p: ["--batch", "2"], 2, "smaller than the number of ranks, 3"),
    "unwritable folder": (in_the_way, 2, "file"),
    "unwritable metrics": (lambda p: ["--metrics-file", "/proc/metrics.jsonl"], 2, "/proc"),
    "unwritable trace": (lambda p: ["--trace-file", "/proc/trace.json"], 2, "/proc"),
    "mesh that does not fit": (lambda p: ["--mesh", "tp=2"], 2, "there are 3"),
    "tp of a model without": (lambda p: ["--mesh", "tp=3"], 2, "tensor parallelism is for --model gpt"),
    "text that is too short": (short_text, 1, "has 5 bytes"),
    "corrupt checkpoint": (corrupt_checkpoint, 1, "corrupt"),
    "loss that explodes": (lambda p: ["--optimizer", "sgd", "--lr", "1e30"], 1, "in step"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_a_code_on_all_ranks(tmp_path, case):
    make, wanted, words = BAD[case]
    begin = time.perf_counter()
    code, out, err = run(3, "--run-dir", tmp_path / "run", *make(tmp_path), limit=20)
    assert time.perf_counter() - begin < 20
    assert code == wanted, err
    lines = [line for line in err.splitlines() if LINE in line]
    assert len(lines) == 1, err
    assert words in lines[0]
    assert "Traceback" not in err
    assert "test accuracy" not in out


def disturbed(tmp_path, strike, *flags):
    """A long run that `strike(process)` hits after its first checkpoint; returns (exit code, seconds to the end, stderr)."""
    process = start(3, "--epochs", "400", "--checkpoint-steps", "20", "--hidden", "64", "--run-dir", tmp_path / "run", *flags)
    wait_for(lambda: resume.newest(tmp_path / "run"))
    begin = time.perf_counter()
    strike(process)
    try:
        _, err = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    return process.returncode, time.perf_counter() - begin, err


def names_in_memory():
    return set(Path("/dev/shm").glob("hpcai-*"))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the ranks in /proc")
@pytest.mark.parametrize(("victim", "more"), [(0, []), (-1, ["--compress", "int4", "--compress-smallest", "1"])])
def test_a_killed_rank_ends_the_job_and_the_run_goes_on_bitwise(tmp_path, victim, more):
    def strike(process):
        ranks = children(process)
        assert len(ranks) == 3
        os.kill(sorted(ranks)[victim], signal.SIGKILL)

    before = names_in_memory()
    code, seconds, _ = disturbed(tmp_path, strike, *more)
    assert code != 0
    assert seconds < 10
    wait_for(lambda: names_in_memory() <= before)  # others have names there for moments
    step = int(resume.newest(tmp_path / "run").name.split("-")[1])
    flags = ["--steps", step + 60, "--checkpoint-steps", "20", "--hidden", "64", *more]
    assert run(3, *flags, "--resume", "auto", "--run-dir", tmp_path / "run")[0] == 0
    assert run(3, *flags, "--run-dir", tmp_path / "whole")[0] == 0
    (mine, whole) = (format.read(resume.newest(tmp_path / name))[1].arrays for name in ("run", "whole"))
    assert mine.keys() == whole.keys()
    assert all(mine[name].tobytes() == whole[name].tobytes() for name in whole)


@pytest.mark.parametrize(
    "number, flags, wanted",
    [
        (signal.SIGUSR1, [], 85),
        (signal.SIGTERM, ["--compress", "reproducible"], 85),
        (signal.SIGHUP, ["--signals", "HUP"], 85),
        (signal.SIGINT, [], 130),
    ],
)
def test_a_signal_to_one_rank_makes_all_write_a_checkpoint_and_leave(tmp_path, number, flags, wanted):
    code, _, err = disturbed(tmp_path, lambda process: os.kill(sorted(children(process))[1], number), *flags)
    assert code == wanted, err
    step = int(resume.newest(tmp_path / "run").name.split("-")[1])
    assert f"left after step {step:,} with a checkpoint" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("flags", [[], ["--overlap", "always", "--bucket-bytes", "2000"]])
def test_ctrl_c_ends_the_job_without_tracebacks(tmp_path, flags):
    code, seconds, err = disturbed(tmp_path, lambda process: process.send_signal(signal.SIGINT), *flags)
    assert code != 0
    assert seconds < 10
    assert "Traceback" not in err


FAILING = """
import numpy as np, hpcai, sys
comm = hpcai.init()
comm.allreduce(np.ones(3))
if comm.rank == 1:
    {action}
comm.allreduce(np.ones(3))
comm.allreduce(np.ones(3))
"""


@pytest.mark.parametrize(
    "action, words",
    [
        ("raise ZeroDivisionError('here')", ["[rank 1] Traceback", "[rank 1] ZeroDivisionError: here"]),
        ("sys.exit(3)", ["rank 1: left", "allreduce"]),
        ("comm.barrier()", ["rank 1: barrier", "ranks 0, 2: allreduce"]),
        ("comm.allreduce(np.ones(4))", ["float64[4]", "float64[3]"]),
        (
            "import threading; t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
            ["[rank 1] ZeroDivisionError"],
        ),
        ("raise KeyboardInterrupt", ["[rank 1] interrupted"]),
    ],
)
def test_what_happens_on_one_rank_ends_all(action, words, tmp_path):
    (tmp_path / "program.py").write_text(FAILING.format(action=action))
    process = start(3, program=(str(tmp_path / "program.py"),))
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    for word in words:
        assert word in err
    assert err.count("Traceback") <= 1


STALLING = """
import time, numpy as np, hpcai
comm = hpcai.init()
comm.allreduce(np.ones(3))
if comm.rank == 1:
    time.sleep(60)
comm.allreduce(np.ones(100_000))
"""


@pytest.mark.parametrize("shared", ["0", "1"])
def test_a_rank_that_never_comes_is_named_and_the_job_ends(shared, tmp_path):
    (tmp_path / "program.py").write_text(STALLING)
    begin = time.perf_counter()
    process = start(3, program=(str(tmp_path / "program.py"),), HPCAI_TIMEOUT_S="0.5", HPCAI_NODE=shared)
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "waited 0.5 s" in err
    assert "for rank 1, which did not come" in err
    assert time.perf_counter() - begin < 15


@pytest.mark.parametrize(
    "variables",
    [{"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}],
)
def test_lonely_ranks_of_a_foreign_launcher_are_refused(variables):
    """Each variable set as the other launcher would set it: this process is started by nobody."""
    done = subprocess.run(
        [sys.executable, "-m", "hpcai.train"], env=environment(**variables), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "each process is rank 0 of 1" in done.stderr
    assert "Start with" in done.stderr
    assert "Traceback" not in done.stderr
