"""The batch script that python -m hpcai.submit writes, run with programs that pretend to be Slurm, launchers and Python."""

import os
import signal
import subprocess

import pytest

from hpcai.submit import script
from tests.command import pretend
from tests.slurm_cluster import wait_for

pytestmark = pytest.mark.usefixtures("clean_environment")

LAUNCH = """#!/bin/bash
case "$*" in
*--overlap*) echo >> {folder}/pings; {ping} ;;
*--mpi=list*) echo "MPI plugin types are... pmi2 pmix" ;;
*) echo "$(basename "$0") $*" >> {folder}/launched; {does} ;;
esac
"""


PYTHON = """#!/bin/bash
case "$*" in
*hpcai.submit.finished*) echo "$*" > {folder}/judged; exit {finished} ;;
*) {probe}; echo "{library}" ;;
esac
"""

ANSWER = """#!/bin/bash
echo >> {folder}/{name}-asked
(($(wc -l < {folder}/{name}-asked) > {fails})) || exit 1
{does}
"""
"""A program that fails so many times before it does what it is for."""


def script_run(
    monkeypatch, folder, does, *, state="RUNNING", ping="exit 0", library="MPICH 5", strike=None, flags="", finished=0, probe=":",
    fails=0, requeues="", **variables,
):  # fmt: skip
    """Run the batch script with programs that pretend; returns its exit code, what it said, and what was requeued."""
    bin = folder / "bin"
    launch = LAUNCH.format(ping=ping, folder=bin, does=does)
    pretend(
        monkeypatch,
        folder / "bin",
        srun=launch,
        mpirun=launch,
        python=PYTHON.format(folder=bin, finished=finished, library=library, probe=probe),
        squeue=ANSWER.format(folder=bin, name="squeue", fails=fails, does=f"echo {state}"),
        scontrol=ANSWER.format(folder=bin, name="scontrol", fails=min(fails, 3), does=f'echo "$@" >> {bin}/requeued{requeues}'),
        sleep='#!/bin/sh\n[ "${1%.*}" -ge 1 ] && [ "$1" -lt 60 ] || exec /bin/sleep "$1"\n',
    )
    (folder / "script").write_text(script.train(script.Job(max_restarts=3)))
    slurms = {"SLURM_JOB_ID": "41", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "2"} | variables
    command = ["bash", "script", *flags.split()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | slurms
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    if strike is not None:
        wait_for(lambda: (folder / "bin" / "ready").exists(), "the launcher")
        process.send_signal(strike)
    try:
        out = process.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    requeued = folder / "bin" / "requeued"
    return process.returncode, out, requeued.read_text() if requeued.exists() else ""


OPEN_MPI = {"library": "Open MPI v5", "HPCAI_LAUNCHER": "mpirun"}
CANNOT_SAY = OPEN_MPI | {"finished": 1}
ELASTIC = OPEN_MPI | {"SLURM_NNODES": "1", "HPCAI_ELASTIC": "shrink"}
ENDS = {
    "a checkpoint": ("exit 85", {}, 0, "requeue 41\n", "requeued, it goes on"),
    "a task of an array": ("exit 85", {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "2"}, 0, "requeue 41_2\n", "requeued"),
    "cancelled": ("exit 85", {"state": "COMPLETING"}, 85, "", "Slurm is ending the job"),
    "too often": ("exit 85", {"SLURM_RESTART_COUNT": "3"}, 85, "", "restarted 3 times"),
    "not too often": ("exit 85", {"SLURM_RESTART_COUNT": "2"}, 0, "requeue 41\n", "restarts: 2"),
    "an error": ("exit 3", {}, 3, "", "exit code 3"),
    "finished": ("exit 0", {}, 0, "", "exit code 0"),
    "finished under mpirun": ("exit 0", OPEN_MPI | {"ping": "exit 1"}, 0, "", "exit code 0"),
    "a lost node under mpirun": ("exit 0", OPEN_MPI | {"finished": 3}, 0, "requeue 41\n", "ranks or a node were lost; requeued"),
    "a lost node, files do not say": ("exit 0", CANNOT_SAY | {"ping": "exit 1"}, 0, "requeue 41\n", "a node was lost; requeued"),
    "no lost node, files do not say": ("exit 0", CANNOT_SAY, 0, "", "exit code 0"),
    "a probe that fails once": ("exit 0", CANNOT_SAY | {"ping": "[[ $(wc -l < {pings}) == 2 ]]"}, 0, "", "exit code 0"),
    "mpirun on one node": ("exit 0", OPEN_MPI | {"finished": 3, "SLURM_NNODES": "1"}, 0, "", "exit code 0"),
    "all ranks lost under ulfm": ("exit 0", ELASTIC | {"finished": 3}, 0, "requeue 41\n", "ranks or a node were lost; requeued"),
    "finished under ulfm": ("exit 0", ELASTIC, 0, "", "exit code 0"),
    "mpirun killed under ulfm": ("exit 137", ELASTIC | {"finished": 3}, 0, "requeue 41\n", "ranks or a node were lost; requeued"),
    "mpirun crashed under ulfm": (
        "exit 134",
        ELASTIC | {"finished": 3},
        0,
        "requeue 41\n",
        "ranks or a node were lost; requeued",
    ),
    "mpirun killed under ulfm at the end": ("exit 137", ELASTIC, 0, "", "exit code 0"),
    "mpirun killed under ulfm, files do not say": ("exit 137", CANNOT_SAY | ELASTIC, 137, "", "exit code 137"),
    "mpirun killed": ("exit 137", OPEN_MPI | {"finished": 3}, 137, "", "exit code 137"),
    "squeue fails": ("exit 85", {"fails": 3}, 0, "requeue 41\n", "requeued, it goes on"),
    "squeue never answers": ("exit 85", {"fails": 99}, 0, "requeue 41\n", "requeued, it goes on"),
    "squeue fails, then says that the job ends": ("exit 85", {"fails": 3, "state": "COMPLETING"}, 85, "", "is ending the job"),
    "ended while scontrol waits": ("exit 85", {"requeues": "; kill -TERM 0"}, 0, "requeue 41\n", "requeued, it goes on"),
    "killed": ("kill -KILL $$", {}, 137, "", "exit code 137"),
}


@pytest.mark.parametrize("case", ENDS)
def test_how_training_ends_decides_whether_the_job_is_requeued(monkeypatch, tmp_path, case):
    does, more, code, requeued, words = ENDS[case]
    if "ping" in more:
        more = more | {"ping": more["ping"].replace("{pings}", str(tmp_path / "bin" / "pings"))}
    found = script_run(monkeypatch, tmp_path, does, **more)
    assert (found[0], found[2]) == (code, requeued), found[1]
    assert words in found[1]


@pytest.mark.parametrize("strike", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize(
    "does, words",
    [
        ("trap 'echo got USR1; exit 85' USR1; touch {ready}; while :; do sleep 0.1; done", "a checkpoint is written; requeued"),
        ("touch {ready}; exec sleep 60", "before training had begun; requeued"),
    ],
)
def test_signals_reach_training_as_usr1(monkeypatch, tmp_path, strike, does, words):
    code, out, requeued = script_run(monkeypatch, tmp_path, does.format(ready=tmp_path / "bin" / "ready"), strike=strike)
    assert (code, requeued) == (0, "requeue 41\n"), out
    assert words in out
    assert ("got USR1" in out) == ("got USR1" in does)


@pytest.mark.parametrize("probe", [":", "exit 1"])
@pytest.mark.parametrize("when", ["site", "probe"])
def test_a_signal_before_the_launch_requeues_the_job(monkeypatch, tmp_path, when, probe):
    """While site.sh loads modules or Python looks for its MPI, which the signal may have ended."""
    slow = f"touch {tmp_path}/bin/ready; sleep 0.5"
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "site.sh").write_text(slow if when == "site" else "")
    probe = probe if when == "site" else f"{slow}; {probe}"
    code, out, requeued = script_run(monkeypatch, tmp_path, "exit 0", strike=signal.SIGUSR1, probe=probe)
    assert (code, requeued) == (0, "requeue 41\n"), out
    assert "before training had begun; requeued" in out
    assert not (tmp_path / "bin" / "launched").exists()


@pytest.mark.parametrize(
    "variables, words",
    [
        ({}, "srun --mpi=pmi2 --kill-on-bad-exit=1 python -m hpcai.train --lr 1 --resume auto"),
        ({"library": "Open MPI v5"}, "srun --mpi=pmix python -m"),
        (OPEN_MPI, "mpirun --bind-to none --map-by ppr:2:node python -m"),
        (
            {"library": "Open MPI v5", "HPCAI_ELASTIC": "shrink"},
            "mpirun --bind-to none --map-by ppr:2:node --with-ft ulfm python -m",
        ),
        (OPEN_MPI | {"HPCAI_ELASTIC": "grow"}, "--with-ft ulfm --prtemca state_base_recoverable 1 python -m"),
        ({"HPCAI_LAUNCHER": "mpirun", "HPCAI_LAUNCHER_OPTIONS": "-ppn 2"}, "mpirun -ppn 2 python -m"),
    ],
)
def test_the_launcher_is_that_of_the_mpi_library(monkeypatch, tmp_path, variables, words):
    code, out, _ = script_run(monkeypatch, tmp_path, "exit 0", flags="--lr 1", **variables)
    assert code == 0
    assert words in out
    assert words.split(" python")[0] in (tmp_path / "bin" / "launched").read_text()


def test_the_site_has_its_say_before_training(monkeypatch, tmp_path):
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "site.sh").write_text("python=(env python)\nHPCAI_LAUNCHER=mpirun\n")
    assert "mpirun env python -m hpcai.train" in script_run(monkeypatch, tmp_path, "exit 0")[1]


def test_a_site_without_a_folder_is_the_one_here(monkeypatch, tmp_path):
    (tmp_path / "mysite").write_text("HPCAI_LAUNCHER=mpirun\n")
    pretend(monkeypatch, tmp_path / "other", mysite="HPCAI_LAUNCHER=rsh\n")
    assert script_run(monkeypatch, tmp_path, "exit 0", HPCAI_SITE="mysite")[0] == 0


def test_words_for_the_launcher_are_no_patterns_of_files(monkeypatch, tmp_path):
    script_run(monkeypatch, tmp_path, "exit 0", HPCAI_LAUNCHER_OPTIONS="--a  s*t 'b\nc")
    assert "--a s*t 'b c python -m" in (tmp_path / "bin" / "launched").read_text()


def test_a_launcher_that_is_not_installed_ends_the_job(monkeypatch, tmp_path):
    code, out, requeued = script_run(monkeypatch, tmp_path, "exit 127", code="85")
    assert (code, requeued) == (127, ""), out


def test_a_launcher_that_there_is_not_ends_the_job(monkeypatch, tmp_path):
    code, out, _ = script_run(monkeypatch, tmp_path, "exit 0", HPCAI_LAUNCHER="rsh")
    assert code == 2
    assert "there is no launcher rsh" in out
