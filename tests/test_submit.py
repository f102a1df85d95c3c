"""python -m hpcai.submit without a Slurm: the scripts' text, and what is refused before anything is queued."""

import json
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from hpcai.errors import UsageError
from hpcai.submit import __main__ as submit
from hpcai.submit import checks, finished, script, slurm, sweep, walltime
from hpcai.train import config
from tests.slurm_cluster import wait_for

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("clean_environment")


def run(capsys, *arguments):
    code = submit.main([str(one) for one in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.skipif(not (ROOT / "slurm").is_dir(), reason="installed without slurm/")
@pytest.mark.parametrize(
    "name, made",
    [("train", script.train(script.Job())), ("bench", script.bench(script.Job(name="hpcai-bench", time="0:15:00")))],
)
def test_the_scripts_in_the_repository_are_what_is_written(name, made):
    """If this fails: python -m hpcai.submit.script train > slurm/train.sbatch, the same for bench."""
    assert (ROOT / "slurm" / f"{name}.sbatch").read_text() == made


def test_scripts_are_bash(tmp_path):
    job = script.Job(
        arguments=["--data", "csv:a b'c.csv"], tasks=[["--lr=1"], ["--lr=2"]], python="/a b/python", more=["--qos=x"]
    )
    for text in (script.train(script.Job()), script.train(job), script.bench(script.Job())):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    settings = script.train(job).split("say()")[0] + 'printf "%s\\n" "${python[@]}" "${options[@]}"'
    done = subprocess.run(["bash"], input=settings, text=True, capture_output=True, env={"SLURM_ARRAY_TASK_ID": "1"}, check=True)
    assert done.stdout.splitlines() == ["/a b/python", "--data", "csv:a b'c.csv", "--lr=2"]


def test_what_is_asked_of_slurm(capsys, tmp_path):
    flags = ["--nodes", 2, "--ranks-per-node", 4, "--time", "2-0", "--partition", "p", "--account", "a", "--gpus-per-rank", 1]
    flags += ["--cpus-per-rank", 3, "--signal-seconds", 60, "--name", "n", "--launcher", "mpirun", "--sbatch=--qos=q"]
    code, out, _ = run(capsys, *flags, "--dry-run", "--", "--run", tmp_path / "run")
    assert code == 0
    asked = [line.removeprefix("#SBATCH --") for line in out.splitlines() if line.startswith("#SBATCH")]
    assert asked == [
        "job-name=n",
        "nodes=2",
        "ntasks-per-node=4",
        "cpus-per-task=3",
        "gpus-per-task=1",
        "time=2-0",
        "partition=p",
        "account=a",
        f"output={tmp_path / 'run' / 'slurm-%j.log'}",
        "requeue",
        "open-mode=append",
        "signal=B:USR1@60",
        "qos=q",
    ]
    assert "launcher=mpirun\n" in out
    assert not (tmp_path / "run").exists()
    plain = run(capsys, "--dry-run", "--", "--run", tmp_path / "run")[1]
    assert "gpus" not in plain
    assert "cpus-per-task" not in plain


def test_a_sweep_has_a_task_and_a_folder_for_each_combination(capsys, tmp_path):
    flags = ["--sweep", "lr=0.1,0.01", "--sweep", "hidden=64,32;16", "--dry-run"]
    code, out, _ = run(capsys, *flags, "--", "--run", tmp_path)
    assert code == 0
    assert "#SBATCH --array=0-3" in out
    assert "slurm-%A_%a.log" in out
    tasks = sweep.runs(["--run", str(tmp_path)], ["lr=0.1,0.01", "hidden=64,32;16"])
    assert [(one.lr, one.hidden) for _, one in tasks] == [(0.1, (64, 32)), (0.1, (16,)), (0.01, (64, 32)), (0.01, (16,))]
    assert tasks[1][1].run == str(tmp_path / "lr=0.1,hidden=16")
    assert len({one.run for _, one in tasks}) == 4
    tasks = sweep.runs(["--checkpoints", "s3://bucket/all/"], ["seed=0,1"])
    assert [one.checkpoints for _, one in tasks] == ["s3://bucket/all/seed=0", "s3://bucket/all/seed=1"]


def absent_text(folder):
    return ["--data", "text:absent.txt"]


def damaged_csv(folder):
    (folder / "t.csv").write_text("x,y\n1,2\none,2\n3,4\n")
    return ["--data", f"csv:{folder / 't.csv'}", "--label", "y"]


def measured(folder, step_ms, made=10, **options):
    """A finished run of default options on 2 ranks."""
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": i + 1, "step_ms": step_ms}) for i in range(made)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    had = config.parse([f"--{name}={value}" for name, value in options.items()])
    summary = {"ranks": 2, "steps": made, "options": {name: getattr(had, name) for name in config.Options.__dataclass_fields__}}
    (folder / "summary.json").write_text(json.dumps(summary))


def elsewhere(folder):
    (folder / "options.yaml").write_text("resume: old/checkpoints/step-1\n")
    return ["--config", str(folder / "options.yaml")]


def slow(folder):
    measured(folder / "run", 20_000)
    return []


BAD = {
    "unknown option": ([], ["--bacth", "3"], "--bacth"),
    "wrong value": ([], ["--optimizer", "none"], "--optimizer wants one of"),
    "mesh": (["--nodes", "3"], ["--mesh", "dp=2"], "a multiple of 2 ranks, there are 3"),
    "batch below ranks": (["--ranks-per-node", "64"], ["--batch", "32"], "smaller than the number of ranks"),
    "tp without gpt": (["--nodes", "2"], ["--mesh", "tp=2"], "tensor parallelism is for --model gpt"),
    "data absent": ([], absent_text, "there is no file absent.txt"),
    "data unknown": ([], ["--data", "cifar"], "unknown data set"),
    "data damaged": ([], damaged_csv, "'one' is not a number"),
    "folder": ([], ["--run", "/proc/run"], "nothing can be written to /proc/run"),
    "metrics": ([], ["--metrics", "/proc/nowhere/m.jsonl"], "nothing can be written to /proc/nowhere"),
    "checkpoints": ([], ["--checkpoints", "/proc/nowhere"], "nothing can be written to /proc/nowhere"),
    "metrics of a sweep": (["--sweep", "lr=1,2"], ["--metrics", "m.jsonl"], "one file for all runs"),
    "time": (["--time", "soon"], [], "--time wants minutes"),
    "no time": (["--time", "0"], [], "no time at all"),
    "time shorter than the signal": (["--time", "2:00"], [], "too short for the signal 120 s before its end"),
    "time shorter than steps": (["--time", "3:00"], slow, "5 steps of 20 s (measured in"),
    "signals": ([], ["--signals", "TERM"], "add it to --signals"),
    "afresh": ([], ["--resume", "never"], "--resume is auto"),
    "elsewhere": ([], ["--resume=old/checkpoints/step-1"], "--resume is auto"),
    "elsewhere by a file": ([], elsewhere, "--resume is auto"),
    "elastic under srun": (["--launcher", "srun-pmix"], ["--elastic", "shrink"], "srun ends all ranks when one fails"),
    "sweep of elastic": (["--sweep", "elastic=never,shrink"], [], "cannot vary 'elastic'"),
    "sweep of nothing": (["--sweep", "lr"], [], "--sweep wants OPTION=VALUE"),
    "sweep of an unknown option": (["--sweep", "speed=1,2"], [], "cannot vary 'speed'"),
    "sweep of folders": (["--sweep", "run=a,b"], [], "cannot vary 'run'"),
    "sweep twice": (["--sweep", "lr=1,2", "--sweep", "lr=3"], [], "cannot vary 'lr'"),
    "sweep with a wrong value": (["--sweep", "lr=0.1,fast"], [], "--lr wants a number"),
    "sweep with equal values": (["--sweep", "seed=1,1"], [], "different values"),
    "site": (["--site", "absent.sh"], [], "--site absent.sh is not a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_fail_is_refused_in_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    flags, training, words = BAD[case]
    more = training(tmp_path) if callable(training) else training
    before = sorted(tmp_path.rglob("*"))
    given = [] if "--run" in more else ["--run", str(tmp_path / "run")]
    code, out, err = run(capsys, *flags, "--dry-run", "--", *given, *more)
    assert (code, out) == (2, "")
    assert err.startswith("hpcai.submit: error: ")
    assert err.count("\n") == 1
    assert words in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("elastic", ["never", "shrink", "grow"])
def test_the_script_knows_whether_ranks_may_fail(capsys, tmp_path, elastic):
    (tmp_path / "options.yaml").write_text(f"elastic: {elastic}\n")
    out = run(capsys, "--dry-run", "--", "--run", tmp_path / "run", "--config", tmp_path / "options.yaml")[1]
    assert f"\nelastic={elastic}\n" in out


def test_a_job_goes_on_whatever_a_file_says(monkeypatch, tmp_path):
    (tmp_path / "options.yaml").write_text("resume: never\n")
    flags = f"--config {tmp_path / 'options.yaml'}"
    assert config.parse(["--resume", "auto", *flags.split()]).resume == "never"
    script_run(monkeypatch, tmp_path, "exit 0", flags=flags, **OPEN_MPI)
    for name in ("launched", "judged"):
        given = (tmp_path / "bin" / name).read_text().split("hpcai.", 1)[1].split()[1:]
        assert config.parse(given).resume == "auto"


@pytest.mark.parametrize(
    "had, now, steps, found, code",
    [
        ({"epochs": 2}, ["--epochs", "2"], 24, [], 0),
        ({"epochs": 2}, ["--epochs", "4"], 24, [], 3),
        ({"epochs": 2}, ["--epochs", "1"], 24, [], 0),
        ({"steps": 9}, ["--steps", "10"], 9, [], 3),
        ({"steps": 9}, ["--steps", "10"], 9, [10], 0),
        ({"steps": 9}, ["--steps", "9", "--help"], 9, [], 0),
        ({"steps": 9}, ["--steps", "nine"], 9, [], 1),
    ],
)
def test_files_tell_whether_a_run_is_finished(capsys, tmp_path, had, now, steps, found, code):
    """Each epoch of the digits has 12 steps of 128 samples."""
    given = ["--run", str(tmp_path / "run"), *now]
    if code == 0 and "--help" not in now:
        assert finished.main(given) == finished.NOT_FINISHED
    measured(tmp_path / "run", 1.0, made=steps, **had)
    for step in found:
        (tmp_path / "run" / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / f"step-{step:09d}" / "manifest.json").write_text("{}")
    assert finished.main(given) == code
    assert bool(capsys.readouterr().err) == (code == 1)


@pytest.mark.parametrize("flags", [["--nodes", "0"], ["--ranks-per-node", "two"], ["--launcher", "ssh"], ["--node", "2"]])
def test_options_of_its_own_are_checked(capsys, flags):
    with pytest.raises(SystemExit) as end:
        submit.main(flags)
    assert end.value.code == 2


def test_without_sbatch_only_the_script_is_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = run(capsys, "--", "--run", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "there is no sbatch on this machine" in err
    assert run(capsys, "--dry-run", "--", "--run", tmp_path / "run")[0] == 0
    assert not (tmp_path / "run").exists()


SBATCH = """#!/bin/sh
case "$1" in
--test-only) cat > /dev/null; {trial} ;;
*) cp "$2" {folder}/submitted; echo "7;cluster" ;;
esac
"""


def pretend(monkeypatch, folder, trial="exit 0", **programs):
    """An sbatch that judges by `trial`, and other programs of Slurm, first on the path."""
    folder.mkdir()
    for name, text in (programs | {"sbatch": SBATCH.format(trial=trial, folder=folder)}).items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_what_slurm_refuses_is_not_queued_and_leaves_nothing(capsys, tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path / "bin", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    code, _, err = run(capsys, "--partition", "x", "--", "--run", tmp_path / "run")
    assert code == 2
    assert "Slurm refuses the job: invalid partition specified: x" in err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "bin" / "submitted").exists()


def test_the_script_lies_in_the_run_folder_and_job_and_log_are_said(capsys, tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path / "bin")
    code, out, _ = run(capsys, "--", "--run", tmp_path / "run")
    assert (code, out) == (0, f"job 7, log {tmp_path / 'run' / 'slurm-7.log'}\n")
    assert (tmp_path / "run" / "train.sbatch").read_text() == (tmp_path / "bin" / "submitted").read_text()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["train.sbatch"]
    code, out, _ = run(capsys, "--sweep", "seed=0,1", "--", "--run", tmp_path / "sweep")
    assert out == f"job 7 (2 tasks), log {tmp_path / 'sweep' / 'slurm-7_*.log'}\n"


SCONTROL = """#!/bin/sh
n=$(cat {folder}/asked 2>/dev/null || echo 0)
echo $((n + 1)) > {folder}/asked
state=$(sed -n "$((n + 1))p" {folder}/states)
[ -n "$state" ] && echo "JobId=7 JobName=x JobState=${{state%,*}} Restarts=0 ExitCode=${{state#*,}}"
"""


@pytest.mark.parametrize(
    "states, code",
    [
        (["PENDING,0:0", "RUNNING,0:0", "", "PENDING,0:0", "RUNNING,0:0", "COMPLETED,0:0"], 0),
        (["RUNNING,0:0", "FAILED,3:0"], 3),
        (["RUNNING,0:0", "CANCELLED,0:15"], 143),
        (["TIMEOUT,0:0"], 124),
        (["RUNNING,0:0"], 1),
    ],
)
def test_following_ends_with_the_job_as_the_job(capsys, tmp_path, monkeypatch, states, code):
    folder = tmp_path / "bin"
    pretend(monkeypatch, folder, scontrol=SCONTROL.format(folder=folder))
    monkeypatch.setattr(slurm, "POLL_S", 0.0)
    (folder / "states").write_text("\n".join(states) + "\n")
    (tmp_path / "log").write_text("first\nlast")
    assert slurm.follow("7", [tmp_path / "log"]) == code
    assert capsys.readouterr().out == "first\n"


def test_the_step_time_is_that_of_the_run_or_of_a_run_like_it(tmp_path):
    options = config.parse(["--run", str(tmp_path / "new")])
    assert walltime.measured(options, 2) is None
    measured(tmp_path / "other-model", 5.0, hidden="16")
    measured(tmp_path / "like", 7.0, seed=3, run="like")
    assert walltime.measured(options, 2).where == tmp_path / "like"
    assert walltime.measured(options, 3) is None
    measured(tmp_path / "new", 9.0)
    found = walltime.measured(options, 3)
    assert (found.step_s, found.where, found.steps) == (0.009, tmp_path / "new", 10)
    (tmp_path / "new" / "metrics.jsonl").write_text("no json}\n")
    assert walltime.measured(options, 2).where == tmp_path / "like"


def test_how_many_allocations_a_run_takes(tmp_path):
    found = walltime.Measured(1.0, tmp_path, 100)
    assert "it fits" in walltime.check("1:00:00", 120, found, 3000, False)
    assert "takes about 3 allocations of 1:00:00" in walltime.check("1:00:00", 120, found, 3480 * 2 + 1, False)
    assert "100 steps" in walltime.check("1:00:00", 120, found, 200, True)
    assert "not known" in walltime.check("1:00:00", 120, None, 200, False)
    with pytest.raises(UsageError, match="too short"):
        walltime.check("2:05", 120, found, 10, False)


@pytest.mark.parametrize("text, wanted", [("5", 300), ("5:30", 330), ("1:02:03", 3723), ("1-2", 93600), ("1-2:03:04", 93784)])
def test_times_are_read_as_slurm_reads_them(text, wanted):
    assert walltime.seconds(text) == wanted


def test_large_data_is_only_looked_for(tmp_path, monkeypatch):
    flags = damaged_csv(tmp_path)
    monkeypatch.setattr(checks, "SMALL_BYTES", 3)
    options = config.parse([*flags, "--run", str(tmp_path / "run")])
    assert "not known" in checks.check(options, 1, "1:00:00", 120)


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
    fails=0, **variables,
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
        scontrol=ANSWER.format(folder=bin, name="scontrol", fails=min(fails, 3), does=f'echo "$@" >> {bin}/requeued'),
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
    "squeue fails": ("exit 85", {"fails": 3}, 0, "requeue 41\n", "requeued, it goes on"),
    "squeue never answers": ("exit 85", {"fails": 99}, 0, "requeue 41\n", "requeued, it goes on"),
    "squeue fails, then says that the job ends": ("exit 85", {"fails": 3, "state": "COMPLETING"}, 85, "", "is ending the job"),
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


def test_a_launcher_that_there_is_not_ends_the_job(monkeypatch, tmp_path):
    code, out, _ = script_run(monkeypatch, tmp_path, "exit 0", HPCAI_LAUNCHER="rsh")
    assert code == 2
    assert "there is no launcher rsh" in out
