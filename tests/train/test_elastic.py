"""Ranks that fail, at every place of a step: the others go on from memory and come to the same parameters. Wants Open MPI."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hpcai.comm import host, threads
from hpcai.comm.ulfm import RECOVERABLE, why_not
from hpcai.errors import UsageError
from hpcai.ops import native
from hpcai.train import checkpoint, resume
from tests import strikes as blows
from tests.command import MPIRUN, children, end, environment, start, wait_for
from tests.train.test_loop import options, train

FLAGS = ["--steps", "40", "--hidden", "24", "--batch", "64", "--dtype", "f64", "--checkpoint-steps", "20"]
PROGRAM = Path(__file__).parent / "striking.py"


def without_ulfm():
    if not MPIRUN.exists():
        return "there is no mpirun beside this Python"
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
    return "" if "Open MPI" in version else "wants Open MPI"


ulfm = pytest.mark.skipif(bool(without_ulfm()), reason=without_ulfm() or "-")


def struck(tmp_path, strikes, *flags, ranks=4, elastic="shrink", run="run", **variables):
    """Run under mpirun --with-ft ulfm; returns (exit code, stderr). Every strike must have been made."""
    flags = [*FLAGS, "--elastic", elastic, *flags, "--run", tmp_path / run]
    launcher = ["--with-ft", "ulfm", *(["--prtemca", RECOVERABLE, "1"] if elastic == "grow" else [])]
    made = tmp_path / "strikes"
    made.write_text("")
    variables["STRIKES"] = str(made)
    process = start(ranks, *strikes.split(), "--", *flags, program=(PROGRAM,), launcher=launcher, **variables)
    try:
        _, err = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    assert sorted(made.read_text().splitlines()) == sorted(re.findall(r"\d\S? \w+ \d+", strikes)), err
    return process.returncode, err


def parameters(folder):
    return checkpoint.read(resume.newest(folder))[1].arrays["params"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train(4, options(folder, *FLAGS))
    return parameters(folder / "run")


@ulfm
@pytest.mark.parametrize(
    "strikes, split",
    [
        ("0 backward 7", ""),
        ("3 reducing 7", "--zero 1"),
        ("2 deciding 7 1 deciding 30", "--zero 2 --bucket-bytes 4000"),
        ("1 decided 7 2! deciding 7", ""),
        ("1 decided 7 2! deciding 7", "--zero 1"),
        ("2 updated 7 0! deciding 7", "--zero 2 --bucket-bytes 4000"),
        ("2 updated 7", "--zero 1"),
        ("1 evaluating 22", ""),
        ("2 saving 19", "--zero 1"),
        ("1 backward 7 3 recovering 7", "--zero 1"),
        ("1 backward 7 3 shrunk 7", ""),
        ("1 backward 7", "--micro-batches 2"),
    ],
)
def test_a_rank_that_dies_anywhere_costs_nothing(tmp_path, undisturbed, strikes, split):
    code, err = struck(tmp_path, strikes, *split.split())
    assert code == 0, err
    np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    killed = len(re.findall(r"\b\d [a-z]", strikes))
    assert sum(len(one["lost"]) for one in summary["recoveries"]) == killed
    assert summary["ranks"] == 4 - killed
    assert "Traceback" not in err


@ulfm
@pytest.mark.parametrize(
    "strikes, split, more",
    [
        ("0 backward 7 2 deciding 21", "", 0),
        ("3 reducing 7", "--zero 1", 0),
        ("1 backward 7 3 recovering 7", "--zero 1", 0),
        ("1 decided 7 3 updated 14", "--zero 2 --bucket-bytes 4000 --spares 1", 1),
    ],
)
def test_where_ranks_share_no_memory_it_costs_nothing_either(tmp_path, undisturbed, strikes, split, more):
    code, err = struck(tmp_path, strikes, *split.split(), ranks=4 + more, HPCAI_NODE="0")
    assert code == 0, err
    np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == 2 + more + strikes.count("3 reducing")
    assert "Traceback" not in err


@ulfm
@pytest.mark.parametrize("strikes", ["1 deciding 7 3 deciding 21", "2 decided 7 0! deciding 7"])
def test_reproducible_training_comes_to_the_same_bits(tmp_path, strikes):
    flags = ["--compress", "reproducible", "--dtype", "f32"]
    train(2, options(tmp_path, *FLAGS, *flags, run="undisturbed"))
    code, err = struck(tmp_path, strikes, *flags)
    assert code == 0, err
    assert parameters(tmp_path / "run").tobytes() == parameters(tmp_path / "undisturbed").tobytes()


@ulfm
@pytest.mark.parametrize("compress", ["int8", "sign", "powersgd:2", "topk:0.1", "int8sum", "bf16"])
def test_compression_goes_on_with_what_is_owed(tmp_path, compress):
    flags = ["--compress", compress, "--dtype", "f32", "--compress-smallest", "1", "--steps", "100", "--optimizer", "sgd"]
    plain = train(4, options(tmp_path, *FLAGS, *flags, run="undisturbed"))
    code, err = struck(tmp_path, "1 decided 30 2! deciding 30 3 reducing 60", *flags)
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_loss"] == pytest.approx(plain["test_loss"], rel=0.03)


@ulfm
@pytest.mark.parametrize("split", ["", "--zero 1", "--compress int8 --dtype f32 --compress-smallest 1"])
def test_new_ranks_come_in_place_of_those_that_failed(tmp_path, undisturbed, split):
    """Of those that were there at the start none is left at the end."""
    code, err = struck(tmp_path, "1 decided 7 0 backward 14 3 backward 20 2 backward 21", *split.split(), elastic="grow")
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [one["ranks"] for one in summary["recoveries"]] == [4, 4, 4, 4]
    assert summary["ranks"] == 4
    if "compress" not in split:
        np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)


@ulfm
@pytest.mark.parametrize("phase", ["starting", "welcomed"])
def test_ranks_that_fail_while_new_ones_come_cost_nothing_either(tmp_path, undisturbed, phase):
    """Before they are started; or the new rank, which had its part already, leaves, and others come in its place. The run goes on
    when all are there, not in between.
    """
    code, err = struck(tmp_path, f"1 backward 7 0 {phase} 7", elastic="grow")
    assert code == 0, err
    np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)
    assert err.count("epoch   2/2") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [(sorted(one["lost"]), one["ranks"]) for one in summary["recoveries"]] == [([0, 1], 4)]
    assert "Traceback" not in err


@ulfm
@pytest.mark.parametrize(
    "strikes, split, ranks",
    [
        ("1 decided 7 4 backward 14 0 backward 21", "", [4, 4, 3]),
        ("0 decided 7 3 deciding 14", "--zero 1", [4, 4]),
        ("1 reducing 7 2! reducing 7", "--compress int8 --dtype f32 --compress-smallest 1", [4]),
        ("1 backward 7 0 welcomed 7", "--zero 1", [4]),
        ("1 decided 7 4 joining 0", "", [4]),
        ("2 backward 7 5 shrunk 0 1 backward 14", "", [4, 3]),
        ("1 backward 7 0 counted 7", "", [4]),
        ("1 backward 7 3 splitting 7", "--zero 1", [4]),
        ("1 backward 7 5 counted 0", "", [4]),
        ("1 backward 7 2- backward 7", "--stall-timeout 5", [4]),
        ("1 backward 7 5- shrunk 0", "--stall-timeout 5", [4]),
        ("1 backward 7 5- waiting 0", "--stall-timeout 5", [4]),
        ("5- waiting 0", "", []),
    ],
)
def test_spare_ranks_take_the_places_of_those_that_failed(tmp_path, undisturbed, strikes, split, ranks):
    """Also when a spare one fails in that, or while it waits, or is frozen, or one whose place it gets is frozen and ended."""
    code, err = struck(tmp_path, strikes, "--spares", "2", *split.split(), ranks=6)
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [one["ranks"] for one in summary.get("recoveries", [])] == ranks
    assert "Traceback" not in err
    assert "spare ones end too" not in err
    if "compress" not in split:
        np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)


@ulfm
@pytest.mark.parametrize("then", ["4 decided 14", "3 starting 7"])
def test_where_spare_ranks_do_not_suffice_new_ones_are_started(tmp_path, undisturbed, then):
    """Also when one fails before that, which the spare one meets too that has just come."""
    code, err = struck(tmp_path, f"1 backward 7 2 backward 7 {then}", "--spares", "1", ranks=5, elastic="grow")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == 4
    np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)


@ulfm
def test_spare_ranks_end_with_the_others(tmp_path):
    """By the signal to leave, which the launcher gives to all; and when all that trained were killed."""
    flags = ["--elastic", "shrink", "--spares", "2", "--epochs", "4000", "--hidden", "24", "--checkpoint-steps", "20"]
    for strike, code, words in ((None, 85, "asked to leave"), (signal.SIGKILL, 85, "all ranks that trained have ended")):
        run = tmp_path / str(code) / words[:3]
        process = start(4, *flags, "--run", run, launcher=["--with-ft", "ulfm"])
        wait_for(lambda: (run / "metrics.jsonl").exists())  # noqa: B023
        time.sleep(1)
        if strike is None:
            process.send_signal(signal.SIGUSR1)
        else:
            for pid in sorted(children(process))[:2]:
                os.kill(pid, strike)
        _, err = process.communicate(timeout=60)
        assert words in err
        assert process.returncode == code, err
        assert ("spare ones end too" in err) == (strike is not None)


@ulfm
@pytest.mark.parametrize(
    "flags, words",
    [
        (["--elastic", "shrink", "--spares", "2"], "--spares 2 of 2 ranks: 2 at least must train"),
        (["--elastic", "shrink", "--spares", "1"], "so that a spare rank has one to learn from; start 1 more"),
        (["--spares", "1"], "give --elastic shrink or grow too"),
        (["--elastic", "shrink", "--spares", "-1"], "--spares wants a whole number from 0, got '-1'"),
    ],
)
def test_spare_ranks_that_cannot_be_are_refused(tmp_path, flags, words):
    process = start(2, *FLAGS, *flags, "--run", tmp_path / "run", launcher=["--with-ft", "ulfm"])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words in err
    assert not (tmp_path / "run").exists()


@ulfm
@pytest.mark.parametrize(
    "strikes, split, elastic",
    [
        ("1- backward 7", "", "shrink"),
        ("0- deciding 7 2- deciding 7", "--zero 1", "shrink"),
        ("2- decided 7", "--compress int8 --dtype f32 --compress-smallest 1", "shrink"),
        ("0- saving 19", "", "shrink"),
        ("3- evaluating 22", "", "shrink"),
        ("0- backward 7", "", "grow"),
        ("1 backward 7 2- backward 7", "", "shrink"),
        ("1 backward 7 2- shrunk 7", "", "shrink"),
        ("1 backward 7 0- recovering 7", "", "shrink"),
    ],
)
def test_the_others_go_on_without_a_frozen_rank(tmp_path, undisturbed, strikes, split, elastic):
    """One or two, in a step, between steps, or while others recover."""
    code, err = struck(tmp_path, strikes, "--stall-timeout", "6", *split.split(), elastic=elastic)
    assert code == 0, err
    assert "is frozen and keeps others waiting" in err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["ranks"] == (4 if elastic == "grow" else 4 - len(strikes.split()) // 3)
    if "compress" not in split:
        np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)


@ulfm
def test_a_slow_rank_costs_a_step_that_is_made_again_and_nobody_is_lost(tmp_path, undisturbed):
    """As where a frozen one is thawed just then, or the whole job was stopped."""
    code, err = struck(tmp_path, "1+ backward 7", "--stall-timeout", "6")
    assert code == 0, err
    assert "some waited in vain, but none failed; 4 go on after step 7" in err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == 4
    np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)


@ulfm
@pytest.mark.parametrize(
    "strikes, words, variables",
    [
        ("1* backward 7", "waited in vain for each other twice after step 7", {}),
        ("1- backward 7", "the recovery from a failure did not end within 21 s", {"BLIND": "1"}),
    ],
)
def test_a_rank_that_is_always_late_or_frozen_out_of_sight_ends_the_run_with_85(tmp_path, strikes, words, variables):
    code, err = struck(tmp_path, strikes, "--stall-timeout", "6", **variables)
    assert code == 85 or (code == -signal.SIGKILL and variables), err  # the launcher waits for the frozen rank, so it is killed
    assert words in err


STARTING = """
import os, signal, sys
def freeze(): os.kill(os.getpid(), signal.SIGSTOP)
rank = os.environ["OMPI_COMM_WORLD_RANK"]
if rank == sys.argv[1] and sys.argv[2] == "before": freeze()
import hpcai
comm = hpcai.init()
if rank == sys.argv[1]: freeze()
comm.barrier()
"""


@ulfm
@pytest.mark.parametrize("rank, when", [("0", "before"), ("1", "after")])
def test_a_rank_that_is_frozen_while_a_run_starts_ends_it_with_85(rank, when):
    """Before MPI is there, or after."""
    process = start(3, rank, when, program=("-c", STARTING), launcher=["--with-ft", "ulfm"], HPCAI_TIMEOUT_S="8")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 85, err
    assert "StallError" in err


@ulfm
def test_ranks_end_with_their_launcher_frozen_ones_too(tmp_path):
    """By themselves the kernel would thaw them, and they go on alone."""
    flags = ["--elastic", "shrink", "--epochs", "4000", "--hidden", "24", "--run", tmp_path / "run"]
    process = start(2, *flags, launcher=["--with-ft", "ulfm"])
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    ranks = [(pid, host.started(pid)) for pid in children(process)]
    assert len(ranks) == 2
    os.kill(ranks[1][0], signal.SIGSTOP)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not any(map(blows.state, ranks)))


@ulfm
@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", [("--freeze", "2", "--upon", "1"), ("--kills", "2", "--first")])
def test_ranks_that_are_struck_at_random_cost_neither_results_nor_metrics(how):
    """make MPI=openmpi torture strikes many."""
    command = [sys.executable, "-m", "tests.torture", "--seed", "3", *how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, cwd=Path(__file__).parents[2], env=environment())
    assert done.returncode == 0, done.stdout + done.stderr


@ulfm
def test_a_signal_to_leave_survives_a_failure_and_reaches_new_ranks(tmp_path):
    """A rank dies while all write the checkpoint with which they leave."""
    flags = ["--elastic", "grow", "--run", tmp_path / "run", "--epochs", "400", "--hidden", "24", "--checkpoint-steps", "0"]
    launcher = ["--with-ft", "ulfm", "--prtemca", RECOVERABLE, "1"]
    process = start(
        3, "2", "leaving", "0", "--", *flags, program=(PROGRAM,), launcher=launcher, STRIKES=str(tmp_path / "strikes")
    )
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    time.sleep(1)
    os.kill(sorted(children(process, b"striking.py"))[0], signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 85, err
    assert "asked to leave" in err
    assert resume.newest(tmp_path / "run")


@ulfm
def test_shards_that_are_lost_with_both_copies_end_the_run_with_the_way_to_go_on(tmp_path):
    code, err = struck(tmp_path, "1 backward 27 2 backward 27", "--zero", "1")
    assert code == 85
    assert "rank 1's share of the optimizer state is lost" in err
    assert "--resume auto" in err
    train(2, options(tmp_path, *FLAGS, "--zero", "1", "--resume", "auto"))


@ulfm
@pytest.mark.parametrize(
    "elastic, launcher, words",
    [("shrink", [], "mpirun --with-ft ulfm"), ("grow", ["--with-ft", "ulfm"], f"--with-ft ulfm --prtemca {RECOVERABLE} 1")],
)
def test_without_the_launchers_consent_it_is_refused(tmp_path, elastic, launcher, words):
    process = start(2, *FLAGS, "--elastic", elastic, "--run", tmp_path / "run", launcher=launcher)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words in err


def test_where_ranks_cannot_fail_alone_it_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--elastic shrink: ranks that are threads"):
        train(2, options(tmp_path, "--elastic", "shrink"))
    assert "cannot go on without a failed rank" in why_not("MPICH 5.0.2")


@pytest.mark.parametrize("chosen, wanted", [("", "^han"), ("^tuned", "^tuned,han"), ("^han", "^han"), ("basic,han", "basic,han")])
def test_open_mpis_han_is_left_out_and_users_choices_stay(monkeypatch, chosen, wanted):
    from hpcai.comm import ulfm

    monkeypatch.setenv(ulfm.ENABLED, "1")
    monkeypatch.setenv(ulfm.COLLECTIVES, chosen)
    monkeypatch.setenv(ulfm.TRANSPORTS, "self,sm,tcp")
    ulfm.prepare()
    assert os.environ[ulfm.COLLECTIVES] == wanted
    assert os.environ[ulfm.TRANSPORTS] == "self,sm,tcp"
    assert bool(ulfm.why_not("Open MPI v5")) == ("han" in wanted and "^" not in wanted)


@pytest.mark.parametrize("enabled, counts", [("1", {1, 2, 3, 4, 5, 6}), ("0", {1, 2, 3})])
def test_errors_without_a_class_are_failures_only_where_ranks_may_fail(monkeypatch, enabled, counts):
    from hpcai.comm import ulfm

    names = ["PROC_FAILED", "PROC_FAILED_PENDING", "REVOKED", "OTHER", "INTERN", "UNKNOWN", "TRUNCATE"]
    classes = SimpleNamespace(**{f"ERR_{name}": number for number, name in enumerate(names, 1)})
    monkeypatch.setenv(ulfm.ENABLED, enabled)
    for number in range(1, 8):
        error = SimpleNamespace(Get_error_class=lambda: number)  # noqa: B023
        assert ulfm.is_failure(classes, error) == (number in counts)


STUCK = """
import ctypes
from hpcai.comm import job, mpi
job.JOINING_S = 0.5
mpi.load = lambda: ctypes.PyDLL(None).sleep(30)  # like MPI_Init in mpi4py's import: no other thread of Python gets its turn
job.merged()
"""


def test_a_new_rank_whose_others_failed_while_mpi_started_ends_as_if_it_had_not_been():
    ended = subprocess.run([sys.executable, "-c", STUCK], timeout=20)
    assert ended.returncode == (0 if native.is_native() else -signal.SIGALRM)


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "sgd"])
def test_a_backup_has_the_bits_of_the_shard(tmp_path, optimizer):
    from hpcai.train.inputs import load
    from hpcai.train.replica import replica
    from hpcai.train.step import train_step

    chosen = options(tmp_path, *FLAGS, "--zero", "1", "--redundancy", "1", "--optimizer", optimizer, "--clip", "0.5")

    def program(comm):
        dataset = load(chosen, comm)
        mine = replica(chosen, dataset, comm)
        for at in range(5):
            share = slice(10 * comm.rank, 10 * comm.rank + 10)
            train_step(mine, dataset.x_train[share].astype("f8"), dataset.y_train[share], 10 * comm.size, at, 0.1)
        mine.mesh.dp.barrier()
        return mine.state, mine.backup.state

    for ranks in (2, 3):
        found = threads.run(ranks, program)
        for rank in range(ranks):
            for name, array in found[rank - 1][0].items():
                assert found[rank][1][name].tobytes() == array.tobytes()
