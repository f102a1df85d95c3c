"""hpcai on a real Slurm, which is started here: three nodes in namespaces of one machine, under the MPI that lies beside this Python."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from hpcai.train import resume
from tests.command import MPIRUN, environment
from tests.slurm_cluster import Cluster, refused, wait_for

ROOT = Path(__file__).parents[1]
OPEN_MPI = MPIRUN.exists() and "Open MPI" in subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
LAUNCHERS = {"srun-pmix": "srun --mpi=pmix", "mpirun": "mpirun"} if OPEN_MPI else {"srun-pmi2": "srun --mpi=pmi2"}
WRONG = ("srun", "srun --mpi=pmi2" if OPEN_MPI else "srun --mpi=pmix")
TINY = ("--hidden", "16", "--batch", "64")

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="there is no mpirun beside this Python")


@pytest.fixture(scope="module")
def slurm():
    if why := refused():
        pytest.skip(why)
    cluster = Cluster()
    yield cluster
    cluster.close()


class Run:
    """A run of training that is submitted, and goes on until `finish` bounds its steps."""

    def __init__(self, slurm, folder, *options, training=(), steps=10**6, follow=()):
        self.slurm, self.folder, self.config = slurm, folder / "run", folder / "options.yaml"
        self.bound(steps)
        self.options = [*options, "--", "--config", self.config, *TINY, "--run-dir", self.folder, *training]
        command = [sys.executable, "-m", "hpcai.submit", *follow, *map(str, self.options)]
        self.said = slurm.run(*command, env=environment(), limit=90)
        assert self.said.returncode == 0, self.said.stdout + self.said.stderr
        self.job = re.match(r"job (\d+)", self.said.stdout)[1]

    def bound(self, steps):
        self.config.write_text(f"steps: {steps}\n")

    def log(self, task=""):
        path = self.folder / f"slurm-{self.job}{task}.log"
        return path.read_text() if path.exists() else ""

    def wait(self, what, name, limit=60):
        wait_for(what, lambda: f"{name}; {self.slurm.about(self.job)}\n{self.log()}", limit)

    def wait_for_state(self, state, limit=60):
        self.wait(lambda: self.slurm.state(self.job) == state, state, limit)

    def wait_for_training(self, epoch=2):
        self.wait(lambda: f"epoch {epoch:>3}/" in self.log(), "an epoch")

    def step(self, folder=None):
        return int(resume.newest(folder or self.folder).name.split("-")[1])

    def finish(self, limit=60):
        """After the strike: bound the run, start it again instead of in two minutes, and see it end."""
        self.ends_after(self.start_again(limit))

    def start_again(self, limit=60):
        """Returns the step that it goes on from."""
        step = self.step()
        self.bound(step + 30)
        self.slurm.starts_again(self.job, limit)
        return step

    def ends_after(self, step):
        self.wait_for_state("COMPLETED")
        assert f"continuing after step {step:,}" in self.log()
        assert json.loads((self.folder / "summary.json").read_text())["steps"] == step + 30


class Short(NamedTuple):
    """A job that trains some steps at most."""

    job: str
    log: Path
    run: Path


@pytest.fixture(scope="module")
def short(slurm, tmp_path_factory):
    """Jobs that need no look while they run, all queued at once: by hand by the scripts, and by wrong launchers."""
    folder, jobs = tmp_path_factory.mktemp("short"), {}

    def queue(name, ranks, *command, **more):
        log, run = folder / f"{name}.log", folder / name.replace(" ", "-")
        asked = ("--parsable", "-N2", f"--ntasks-per-node={ranks}", f"--output={log}")
        jobs[name] = Short(slurm.say("sbatch", *asked, *(str(one).format(run=run) for one in command), **more), log, run)

    variables = environment(PATH=f"{MPIRUN.parent}:/usr/bin:/bin")
    queue("train", 1, "slurm/train.sbatch", *TINY, "--steps", "10", "--run-dir", "{run}", cwd=ROOT, env=variables)
    queue("bench", 1, "slurm/bench.sbatch", "-e", "4", "-n", "1", "-w", "0", cwd=ROOT, env=variables)
    for launch in WRONG:
        line = f"{launch} {sys.executable} -m hpcai.train --steps 1 --run-dir {{run}}"
        queue(launch, 2, f"--wrap={line}", env=environment())
    return jobs


def test_a_run_is_followed_to_its_end(slurm, short, tmp_path):
    """In a folder and by a name that want quotes in bash, in Slurm's header, and in its pattern for logs."""
    folder, name = tmp_path / 'it\'s 50%j "b" #$(id) packjob', "a HetJob's JobState=FAILED \\ #1"
    folder.mkdir()
    run = Run(slurm, folder, "--nodes", "2", "--name", name, f"--sbatch=--comment={name}", steps=10, follow=["--follow"])
    said = slurm.say("scontrol", "show", "job", run.job)
    assert f"JobName={name}\n" in said
    assert f"Comment={name}" in said
    assert "ranks          2" in run.said.stdout
    assert "training ended with exit code 0" in run.said.stdout
    assert f"job {run.job}: COMPLETED" in run.said.stderr
    assert slurm.state(run.job) == "COMPLETED"


@pytest.mark.parametrize("script, words", [("train", "ranks          2"), ("bench", "MPI_Allreduce")])
def test_the_scripts_by_hand_choose_the_launcher(slurm, short, script, words):
    assert slurm.ends(short[script].job) == "COMPLETED", short[script].log.read_text()
    assert words in short[script].log.read_text()


@pytest.mark.parametrize("launch", WRONG)
def test_a_wrong_launcher_is_refused(slurm, short, launch):
    assert slurm.ends(short[launch].job) == "FAILED"
    said = short[launch].log.read_text()
    assert f"Start with srun --mpi={'pmix' if OPEN_MPI else 'pmi2'}" in said or "unsupported PMI version PMIx" in said
    assert not short[launch].run.exists()


def test_usr1_leaves_a_checkpoint_and_the_requeued_job_goes_on(slurm, tmp_path):
    """By each launcher, beside each other."""
    runs, ranks = {}, {launcher: 1 if launcher == "mpirun" else 2 for launcher in LAUNCHERS}
    for launcher in LAUNCHERS:
        (tmp_path / launcher).mkdir()
        flags = ("--nodes", "2", "--ranks-per-node", ranks[launcher], "--launcher", launcher)
        runs[launcher] = Run(slurm, tmp_path / launcher, *flags, training=("--checkpoint-steps", "0"))
    for run in runs.values():
        run.wait_for_training()
    for run in runs.values():
        slurm.run("scancel", "--batch", "--signal=USR1", run.job)
    for run in runs.values():
        run.wait(lambda run=run: "a checkpoint is written; requeued" in run.log(), "the requeue", 30)
        assert "left after step" in run.log()
    steps = {run: run.start_again() for run in runs.values()}
    for launcher, run in runs.items():
        run.ends_after(steps[run])
        assert run.log().count(f"hpcai: {LAUNCHERS[launcher]} ") == 2
        assert json.loads((run.folder / "summary.json").read_text())["ranks"] == 2 * ranks[launcher]


def test_a_job_that_comes_first_is_made_room_for(slurm, tmp_path):
    run = Run(slurm, tmp_path, "--nodes", "3", "--cpus-per-rank", "2", training=("--checkpoint-steps", "0"))
    run.wait_for_training()
    first = slurm.say("sbatch", "--parsable", "-p", "high", "-N", "3", "-c", "4", "--output=/dev/null", "--wrap=true")
    assert slurm.ends(first, 30) == "COMPLETED"
    assert "a checkpoint is written; requeued" in run.log()
    run.finish()
    assert "restarts: 1" in run.log()


def test_a_job_whose_node_dies_goes_on_elsewhere(slurm, tmp_path):
    """Under Open MPI by mpirun, which ends with 0 when it loses a node."""
    launcher = "mpirun" if OPEN_MPI else "srun-pmi2"
    run = Run(slurm, tmp_path, "--nodes", "2", "--launcher", launcher, training=("--checkpoint-steps", "20"))
    run.wait_for_training()
    slurm.kill_node("node2")
    try:
        time.sleep(2)  # a checkpoint that is being written is complete, and there are no more steps
        if OPEN_MPI:
            run.wait(lambda: "ranks or a node were lost; requeued" in run.log(), "the requeue")
            slurm.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=killed")  # instead of SlurmdTimeout
        run.finish(80)
        assert "NodeList=node[1,3]" in slurm.say("scontrol", "show", "job", run.job)
    finally:
        slurm.start_node("node2")
        wait_for(lambda: slurm.say("sinfo", "-h", "-n", "node2", "-o", "%t").startswith("idle"), "node2")


@pytest.fixture(scope="module")
def cancelled(slurm, tmp_path_factory):
    """A run that is under way, to be cancelled."""
    return Run(slurm, tmp_path_factory.mktemp("cancelled"), training=("--checkpoint-steps", "0"))


def test_a_sweep_is_an_array_whose_tasks_are_requeued_one_by_one(slurm, cancelled, tmp_path):
    run = Run(slurm, tmp_path, "--sweep", "lr=0.1,0.01", training=("--checkpoint-steps", "0"))
    folders = [run.folder / "lr=0.1", run.folder / "lr=0.01"]
    logs = ["_0", "_1"]
    run.wait(lambda: all("epoch   2/" in run.log(task) for task in logs), "both tasks")
    slurm.run("scancel", "--batch", "--signal=USR1", f"{run.job}_1")
    run.wait(lambda: "requeued" in run.log("_1"), "the requeue")
    assert slurm.state(f"{run.job}_0") == "RUNNING"
    slurm.run("scancel", "--batch", "--signal=USR1", f"{run.job}_0")
    run.wait(lambda: all(slurm.state(f"{run.job}{task}") == "PENDING" for task in logs), "both pending")
    steps = max(run.step(folder) for folder in folders) + 10
    run.bound(steps)
    for task in logs:
        slurm.starts_again(f"{run.job}{task}")
    run.wait(lambda: all(slurm.state(f"{run.job}{task}") == "COMPLETED" for task in logs), "both tasks' end")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert [one["options"]["lr"] for one in summaries] == [0.1, 0.01]
    assert [one["steps"] for one in summaries] == [steps] * 2


def test_scancel_leaves_a_checkpoint_and_does_not_requeue(slurm, cancelled):
    run = cancelled
    run.wait_for_training()
    slurm.run("scancel", run.job)
    run.wait_for_state("CANCELLED")
    run.wait(lambda: "Slurm is ending the job" in run.log() or "ended with exit code" in run.log(), "the end")
    assert run.step() > 0
    assert slurm.state(run.job) == "CANCELLED"
