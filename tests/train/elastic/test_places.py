"""The places of ranks that fail: others are started for them, or spare ranks take them. Wants Open MPI."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hpcai.comm.wires.ulfm import RECOVERABLE
from hpcai.ops import native
from hpcai.train import resume
from tests.command import children, start, trains, wait_for
from tests.train.elastic.runs import FLAGS, PROGRAM, parameters, struck, ulfm


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
    code, err = struck(tmp_path, strikes, "--spare-ranks", "2", *split.split(), ranks=6)
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [one["ranks"] for one in summary.get("recoveries", [])] == ranks
    assert "Traceback" not in err
    assert "spare ranks end too" not in err
    if "compress" not in split:
        np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)


@ulfm
@pytest.mark.parametrize("then", ["4 decided 14", "3 starting 7"])
def test_where_spare_ranks_do_not_suffice_new_ones_are_started(tmp_path, undisturbed, then):
    """Also when one fails before that, which the spare one meets too that has just come."""
    code, err = struck(tmp_path, f"1 backward 7 2 backward 7 {then}", "--spare-ranks", "1", ranks=5, elastic="grow")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == 4
    np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)


@ulfm
def test_spare_ranks_end_with_the_others(tmp_path):
    """By the signal to leave, which the launcher gives to all; and when all that trained were killed."""
    flags = ["--elastic", "shrink", "--spare-ranks", "2", "--epochs", "4000", "--hidden", "24", "--checkpoint-steps", "20"]
    for strike, code, words in ((None, 85, "asked to leave"), (signal.SIGKILL, 85, "all training ranks have ended")):
        run = tmp_path / str(code) / words[:3]
        process = start(4, *flags, "--run-dir", run, launcher=["--with-ft", "ulfm"])
        wait_for(lambda: trains(run))  # noqa: B023
        time.sleep(1)
        if strike is None:
            process.send_signal(signal.SIGUSR1)
        else:
            for pid in sorted(children(process))[:2]:
                os.kill(pid, strike)
        _, err = process.communicate(timeout=60)
        assert words in err
        assert process.returncode == code, err
        assert ("spare ranks end too" in err) == (strike is not None)


@ulfm
@pytest.mark.parametrize(
    "flags, words",
    [
        (["--elastic", "shrink", "--spare-ranks", "2"], "--spare-ranks 2 of 2 ranks: 2 at least must train"),
        (["--elastic", "shrink", "--spare-ranks", "1"], "can copy the state of another; start 1 more"),
        (["--spare-ranks", "1"], "give --elastic shrink or grow too"),
        (["--elastic", "shrink", "--spare-ranks", "-1"], "--spare-ranks wants a whole number from 0, got '-1'"),
    ],
)
def test_spare_ranks_that_cannot_be_are_refused(tmp_path, flags, words):
    process = start(2, *FLAGS, *flags, "--run-dir", tmp_path / "run", launcher=["--with-ft", "ulfm"])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words in err
    assert not (tmp_path / "run").exists()


@ulfm
def test_a_signal_to_leave_survives_a_failure_and_reaches_new_ranks(tmp_path):
    """A rank dies while all write the checkpoint with which they leave."""
    flags = ["--elastic", "grow", "--run-dir", tmp_path / "run", "--epochs", "400", "--hidden", "24", "--checkpoint-steps", "0"]
    launcher = ["--with-ft", "ulfm", "--prtemca", RECOVERABLE, "1"]
    process = start(
        3, "2", "leaving", "0", "--", *flags, program=(PROGRAM,), launcher=launcher, STRIKES=str(tmp_path / "strikes")
    )
    wait_for(lambda: trains(tmp_path / "run"))
    time.sleep(1)
    os.kill(sorted(children(process, b"striking.py"))[0], signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 85, err
    assert "asked to leave" in err
    assert resume.newest(tmp_path / "run")


STUCK = """
import ctypes
from hpcai.comm import job
from hpcai.comm.wires import library
job.JOINING_S = 0.5
library.load = lambda: ctypes.PyDLL(None).sleep(30)  # like MPI_Init in mpi4py's import: no other thread of Python gets its turn
job.merged()
"""


def test_a_new_rank_whose_others_failed_while_mpi_started_ends_as_if_it_had_not_been():
    ended = subprocess.run([sys.executable, "-c", STUCK], timeout=20)
    assert ended.returncode == (0 if native.is_native() else -signal.SIGALRM)
