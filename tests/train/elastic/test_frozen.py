"""Ranks that freeze, are slow, or are struck at random: the others go on from memory, or all end. Wants Open MPI."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcai.comm.launch import host
from tests import strikes as blows
from tests.command import children, environment, start, trains, wait_for
from tests.train.elastic.runs import parameters, struck, ulfm


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
    assert "some ranks stalled, but none failed; 4 go on after step 7" in err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == 4
    np.testing.assert_allclose(parameters(tmp_path / "run"), undisturbed, rtol=1e-9, atol=1e-11)


@ulfm
@pytest.mark.parametrize(
    "strikes, words, variables",
    [
        ("1* backward 7", "ranks stalled twice after step 7", {}),
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
    flags = ["--elastic", "shrink", "--epochs", "4000", "--hidden", "24", "--run-dir", tmp_path / "run"]
    process = start(2, *flags, launcher=["--with-ft", "ulfm"])
    wait_for(lambda: trains(tmp_path / "run"))
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, cwd=Path(__file__).parents[3], env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
