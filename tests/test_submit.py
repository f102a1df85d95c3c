"""python -m hpcai.submit without a Slurm: the scripts' text, and what is refused before anything is queued."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from hpcai.errors import HpcaiError, UsageError
from hpcai.submit import __main__ as submit
from hpcai.submit import checks, finished, script, slurm, sweep, walltime
from hpcai.train.options import parser
from tests.command import pretend
from tests.test_batch_script import OPEN_MPI, script_run

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
        arguments=["--data", "csv:a b'c.csv"],
        tasks=[["--lr=1"], ["--lr=2"]],
        python="/a b/python",
        site="/a b'c/site.sh",
        more=["--qos=x"],
    )
    for text in (script.train(script.Job()), script.train(job), script.bench(script.Job())):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    settings = script.train(job).split("say()")[0] + 'printf "%s\\n" "${python[@]}" "$site" "${options[@]}"'
    done = subprocess.run(["bash"], input=settings, text=True, capture_output=True, env={"SLURM_ARRAY_TASK_ID": "1"}, check=True)
    assert done.stdout.splitlines() == ["/a b/python", "/a b'c/site.sh", "--data", "csv:a b'c.csv", "--lr=2"]


def test_what_is_asked_of_slurm(capsys, tmp_path):
    flags = ["--nodes", 2, "--ranks-per-node", 4, "--time", "2-0", "--partition", "p", "--account", "a", "--gpus-per-rank", 1]
    flags += ["--cpus-per-rank", 3, "--signal-seconds", 60, "--name", "n", "--launcher", "mpirun", "--sbatch=--qos=q"]
    code, out, _ = run(capsys, *flags, "--dry-run", "--", "--run-dir", tmp_path / "run")
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
    plain = run(capsys, "--dry-run", "--", "--run-dir", tmp_path / "run")[1]
    assert "gpus" not in plain
    assert "cpus-per-task" not in plain


def test_a_sweep_has_a_task_and_a_folder_for_each_combination(capsys, tmp_path):
    flags = ["--sweep", "lr=0.1,0.01", "--sweep", "hidden=64,32;16", "--dry-run"]
    code, out, _ = run(capsys, *flags, "--", "--run-dir", tmp_path)
    assert code == 0
    assert "#SBATCH --array=0-3" in out
    assert "slurm-%A_%a.log" in out
    tasks = sweep.runs(["--run-dir", str(tmp_path)], ["lr=0.1,0.01", "hidden=64,32;16"])
    assert [(one.lr, one.hidden) for _, one in tasks] == [(0.1, (64, 32)), (0.1, (16,)), (0.01, (64, 32)), (0.01, (16,))]
    assert tasks[1][1].run_dir == str(tmp_path / "lr=0.1,hidden=16")
    assert len({one.run_dir for _, one in tasks}) == 4
    tasks = sweep.runs(["--checkpoint-dir", "s3://bucket/all/"], ["seed=0,1"])
    assert [one.checkpoint_dir for _, one in tasks] == ["s3://bucket/all/seed=0", "s3://bucket/all/seed=1"]


def absent_text(folder):
    return ["--data", "text:absent.txt"]


def damaged_csv(folder):
    (folder / "t.csv").write_text("x,y\n1,2\none,2\n3,4\n")
    return ["--data", f"csv:{folder / 't.csv'}", "--label-column", "y"]


def measured(folder, step_ms, made=10, **options):
    """A finished run of default options on 2 ranks."""
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": i + 1, "step_ms": step_ms}) for i in range(made)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    had = parser.parse([f"--{name}={value}" for name, value in options.items()])
    summary = {"ranks": 2, "steps": made, "options": {name: getattr(had, name) for name in parser.Options.__dataclass_fields__}}
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
    "mesh": (["--nodes", "3"], ["--mesh", "dp=2"], "a multiple of 2 ranks, but there are 3"),
    "batch below ranks": (["--ranks-per-node", "64"], ["--batch", "32"], "smaller than the number of ranks"),
    "tp without gpt": (["--nodes", "2"], ["--mesh", "tp=2"], "tensor parallelism is for --model gpt"),
    "data absent": ([], absent_text, "there is no file absent.txt"),
    "data unknown": ([], ["--data", "cifar"], "unknown data set"),
    "data damaged": ([], damaged_csv, "'one' is not a number"),
    "folder": ([], ["--run-dir", "/proc/run"], "nothing can be written to /proc/run"),
    "metrics": ([], ["--metrics-file", "/proc/nowhere/m.jsonl"], "nothing can be written to /proc/nowhere"),
    "checkpoints": ([], ["--checkpoint-dir", "/proc/nowhere"], "nothing can be written to /proc/nowhere"),
    "metrics of a sweep": (["--sweep", "lr=1,2"], ["--metrics-file", "m.jsonl"], "one file for all runs"),
    "time": (["--time", "soon"], [], "--time wants minutes"),
    "no time": (["--time", "0"], [], "no time at all"),
    "time shorter than the signal": (["--time", "2:00"], [], "too short for the signal 120 s before its end"),
    "time shorter than steps": (["--time", "3:00"], slow, "5 steps of 20 s (measured in"),
    "signals": ([], ["--signals", "TERM"], "add it to --signals"),
    "afresh": ([], ["--resume", "never"], "--resume is auto"),
    "elsewhere": ([], ["--resume=old/checkpoints/step-1"], "--resume is auto"),
    "elsewhere by a file": ([], elsewhere, "--resume is auto"),
    "elastic under srun": (["--launcher", "srun-pmix"], ["--elastic", "shrink"], "srun ends all ranks when one fails"),
    "all ranks spare": (
        ["--nodes", "2"],
        ["--elastic", "shrink", "--spare-ranks", "2"],
        "--spare-ranks 2 of 2 ranks: 2 at least must train",
    ),
    "sweep of elastic": (["--sweep", "elastic=never,shrink"], [], "cannot vary 'elastic'"),
    "sweep of nothing": (["--sweep", "lr"], [], "--sweep wants OPTION=VALUE"),
    "sweep of an unknown option": (["--sweep", "speed=1,2"], [], "cannot vary 'speed'"),
    "sweep of a misspelt option": (["--sweep", "lrr=1,2"], [], "cannot vary 'lrr' (is lr meant?)"),
    "sweep of folders": (["--sweep", "run=a,b"], [], "cannot vary 'run-dir'"),
    "sweep twice": (["--sweep", "lr=1,2", "--sweep", "lr=3"], [], "cannot vary 'lr'"),
    "sweep with a wrong value": (["--sweep", "lr=0.1,fast"], [], "--lr wants a number"),
    "sweep with equal values": (["--sweep", "seed=1,1"], [], "different values"),
    "site": (["--site", "absent.sh"], [], "--site 'absent.sh' is not a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_fail_is_refused_in_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    flags, training, words = BAD[case]
    more = training(tmp_path) if callable(training) else training
    before = sorted(tmp_path.rglob("*"))
    given = [] if "--run-dir" in more else ["--run-dir", str(tmp_path / "run")]
    code, out, err = run(capsys, *flags, "--dry-run", "--", *given, *more)
    assert (code, out) == (2, "")
    assert err.startswith("hpcai.submit: error: ")
    assert err.count("\n") == 1
    assert words in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("elastic", ["never", "shrink", "grow"])
def test_the_script_knows_whether_ranks_may_fail(capsys, tmp_path, elastic):
    (tmp_path / "options.yaml").write_text(f"elastic: {elastic}\n")
    out = run(capsys, "--dry-run", "--", "--run-dir", tmp_path / "run", "--config", tmp_path / "options.yaml")[1]
    assert f"\nelastic={elastic}\n" in out


def test_a_job_goes_on_whatever_a_file_says(monkeypatch, tmp_path):
    (tmp_path / "options.yaml").write_text("resume: never\n")
    flags = f"--config {tmp_path / 'options.yaml'}"
    assert parser.parse(["--resume", "auto", *flags.split()]).resume == "auto"  # flags win, wherever the file is named
    script_run(monkeypatch, tmp_path, "exit 0", flags=flags, **OPEN_MPI)
    for name in ("launched", "judged"):
        given = (tmp_path / "bin" / name).read_text().split("hpcai.", 1)[1].split()[1:]
        assert parser.parse(given).resume == "auto"


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
    given = ["--run-dir", str(tmp_path / "run"), *now]
    if code == 0 and "--help" not in now:
        assert finished.main(given) == finished.NOT_FINISHED
    measured(tmp_path / "run", 1.0, made=steps, **had)
    for step in found:
        (tmp_path / "run" / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / f"step-{step:09d}" / "manifest.json").write_text("{}")
    assert finished.main(given) == code
    assert bool(capsys.readouterr().err) == (code == 1)


OWN = {
    "no nodes": (["--nodes", "0"], "--nodes: wants a whole number from 1 to 1,000,000, got '0'"),
    "a word": (["--ranks-per-node", "two"], "wants a whole number from 1 to 1,000,000, got 'two'"),
    "below zero": (["--cpus-per-rank", "-3"], "--cpus-per-rank: wants a whole number from 1"),
    "other digits": (["--gpus-per-rank", "\u0663"], "--gpus-per-rank: wants a whole number from 1"),
    "very many digits": (["--nodes", "9" * 5000], "--nodes: wants a whole number from 1"),
    "restarts below zero": (["--max-restarts=-1"], "--max-restarts: wants a whole number from 0"),
    "a lead that Slurm does not take": (["--signal-seconds", "65536"], "--signal-seconds: wants a whole number from 1 to 65,535"),
    "a launcher": (["--launcher", "ssh"], "invalid choice: 'ssh'"),
    "unknown": (["--node", "2"], "unrecognized arguments: --node 2 (is --nodes meant?)"),
    "no option": (["digits"], "unrecognized arguments: digits"),
    "no value": (["--name"], "--name: expected one argument"),
    "no name": (["--name="], "--job-name wants a value"),
    "no partition": (["--partition="], "--partition wants a value"),
    "full-width digits": (["--time", "\uff11:00:00"], "--time wants minutes"),
    "a very long time": (["--time", "99999999-0"], "longer than a year"),
    "no option of sbatch": (["--sbatch=hetjob"], "--sbatch wants an option of sbatch"),
    "an option of its own": (["--sbatch=--nodes=3"], "--nodes is set by the script itself; give --nodes instead"),
    "a short one": (["--sbatch=-Jname"], "give --name instead"),
    "two options of sbatch": (["--sbatch=--exclusive --wrap=x"], "--sbatch wants one option each"),
    "no value for sbatch": (["--sbatch=--mem "], "--sbatch wants one option each"),
    "the log": (["--sbatch=--output=x"], "the script depends on it"),
    "a very long name": (["--name", "x" * 5000], "too long for a line that Slurm reads (4,096 bytes)"),
    "a very large sweep": (
        ["--sweep", f"seed={','.join(map(str, range(10_001)))}"],
        "asks for 10,001 runs and allows 10,000 at most",
    ),
    "a sweep of long names": (["--sweep", f"data=digits,csv:{'x' * 300}"], "more than 255 bytes"),
}


@pytest.mark.parametrize("case", OWN)
def test_options_of_its_own_are_checked_in_one_line(capsys, tmp_path, case):
    flags, words = OWN[case]
    code, out, err = run(capsys, *flags, "--dry-run", "--", "--run-dir", tmp_path / "run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_without_sbatch_only_the_script_is_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = run(capsys, "--", "--run-dir", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "there is no sbatch on this machine" in err
    assert run(capsys, "--dry-run", "--", "--run-dir", tmp_path / "run")[0] == 0
    assert not (tmp_path / "run").exists()


SBATCH = """#!/bin/sh
case "$1" in
--test-only) cat > /dev/null; {trial} ;;
*) cp "$2" {folder}/submitted; echo "7;cluster" ;;
esac
"""


def pretend_slurm(monkeypatch, folder, trial="exit 0", **programs):
    """An sbatch that judges by `trial`, and other programs of Slurm."""
    pretend(monkeypatch, folder, sbatch=SBATCH.format(trial=trial, folder=folder), **programs)


def test_what_slurm_refuses_is_not_queued_and_leaves_nothing(capsys, tmp_path, monkeypatch):
    pretend_slurm(monkeypatch, tmp_path / "bin", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    code, _, err = run(capsys, "--partition", "x", "--", "--run-dir", tmp_path / "run")
    assert code == 2
    assert "Slurm refuses the job: invalid partition specified: x" in err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "bin" / "submitted").exists()


def test_the_script_lies_in_the_run_folder_and_job_and_log_are_said(capsys, tmp_path, monkeypatch):
    pretend_slurm(monkeypatch, tmp_path / "bin")
    code, out, _ = run(capsys, "--", "--run-dir", tmp_path / "run")
    assert (code, out) == (0, f"job 7, log {tmp_path / 'run' / 'slurm-7.log'}\n")
    assert (tmp_path / "run" / "train.sbatch").read_text() == (tmp_path / "bin" / "submitted").read_text()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["train.sbatch"]
    code, out, _ = run(capsys, "--sweep", "seed=0,1", "--", "--run-dir", tmp_path / "sweep")
    assert out == f"job 7 (2 tasks), log {tmp_path / 'sweep' / 'slurm-7_*.log'}\n"


SCONTROL = """#!/bin/sh
n=$(cat {folder}/asked 2>/dev/null || echo 0)
echo $((n + 1)) > {folder}/asked
state=$(sed -n "$((n + 1))p" {folder}/states)
[ -n "$state" ] && printf '%s\n' "JobId=7 JobName=x JobState=COMPLETED ExitCode=0:0" "   UserId=u(1) Account=   JobState=FAILED" \
    "   JobState=${{state%,*}} Reason=None Dependency=(null)" "   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=${{state#*,}}" \
    "   WorkDir=/a JobState=PENDING ExitCode=1:0" "   Comment=JobId=8 JobState=PENDING" ""
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
    pretend_slurm(monkeypatch, folder, scontrol=SCONTROL.format(folder=folder))
    monkeypatch.setattr(slurm, "POLL_S", 0.0)
    (folder / "states").write_text("\n".join(states) + "\n")
    (tmp_path / "log").write_text("first\nlast")
    assert slurm.follow("7", [tmp_path / "log"]) == code
    assert capsys.readouterr().out == "first\n"


def test_the_step_time_is_that_of_the_run_or_of_a_run_like_it(tmp_path):
    options = parser.parse(["--run-dir", str(tmp_path / "new")])
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
    options = parser.parse([*flags, "--run-dir", str(tmp_path / "run")])
    assert "not known" in checks.check(options, 1, "1:00:00", 120)


DAMAGED = {
    "no object": "[1]",
    "no options": '{"ranks": 2, "steps": 9}',
    "options that are a list": '{"ranks": 2, "steps": 9, "options": []}',
    "nested deep": "[" * 100_000,
    "infinite steps": '{"ranks": 2, "steps": Infinity, "options": {}}',
    "not JSON": "{",
    "empty": "",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_summary_is_no_finished_run(tmp_path, case):
    measured(tmp_path / "other", 5.0)
    (tmp_path / "other" / "summary.json").write_text(DAMAGED[case])
    assert walltime.measured(parser.parse(["--run-dir", str(tmp_path / "new")]), 2) is None
    assert finished.main(["--run-dir", str(tmp_path / "other")]) == finished.NOT_FINISHED


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "step_ms": NaN}',
        '{"step": 1, "step_ms": 1e999}',
        '{"step": "1", "step_ms": 1}',
        '{"step": 1, "step_ms": -1}',
        "[1]}",
    ],
)
def test_a_damaged_step_time_is_not_taken(tmp_path, line):
    measured(tmp_path / "run", 5.0)
    (tmp_path / "run" / "metrics.jsonl").write_text(f"{line}\n")
    assert walltime.measured(parser.parse(["--run-dir", str(tmp_path / "run")]), 2) is None


def test_only_the_end_of_metrics_is_read(tmp_path):
    measured(tmp_path / "run", 5.0, made=20_000)
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > walltime.TAIL_BYTES
    assert walltime.measured(parser.parse(["--run-dir", str(tmp_path / "run")]), 2).steps == 20_000


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
def test_what_is_no_plain_file_is_not_read(tmp_path, name):
    measured(tmp_path / "other", 5.0)
    (tmp_path / "other" / name).unlink()
    os.mkfifo(tmp_path / "other" / name)
    assert walltime.measured(parser.parse(["--run-dir", str(tmp_path / "new")]), 2) is None
    assert slurm._print_new(tmp_path / "other" / name, 0, "") == 0


def test_a_log_is_printed_by_whole_lines_and_pieces(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "READ_BYTES", 8)
    (tmp_path / "log").write_bytes("ab\rc\u2028\nlonger than a piece\n\nlast".encode())
    assert slurm._print_new(tmp_path / "log", 0, "") == (tmp_path / "log").stat().st_size - 4
    assert capsys.readouterr().out == "ab\rc\u2028\nlonger t\nhan a pi\nece\n\n"


@pytest.mark.parametrize(
    "said, job", [("7", "7"), ("7;cluster", "7"), ("Welcome!\n7;c", "7"), ("", None), ("queued", None), ("7 8", None)]
)
def test_a_jobs_number_is_a_number(tmp_path, monkeypatch, said, job):
    pretend(monkeypatch, tmp_path / "bin", sbatch=f"#!/bin/sh\nprintf '{said}'\n")
    if job:
        assert slurm.submit(tmp_path / "script") == job
    else:
        with pytest.raises(HpcaiError, match="did not say the job's number"):
            slurm.submit(tmp_path / "script")


def test_a_folder_with_a_dash_is_no_option_of_sbatch(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretend_slurm(monkeypatch, tmp_path / "bin")
    assert run(capsys, "--", "--run-dir=-x")[0] == 0
    assert "--job-name=-x" in (tmp_path / "bin" / "submitted").read_text()


def test_a_script_that_cannot_be_written_leaves_nothing(capsys, tmp_path, monkeypatch):
    pretend_slurm(monkeypatch, tmp_path / "bin")
    (tmp_path / "run" / "train.sbatch").mkdir(parents=True)
    code, _, err = run(capsys, "--", "--run-dir", tmp_path / "run")
    assert (code, err.count("\n")) == (1, 1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["train.sbatch"]


def test_a_task_that_an_array_does_not_have_trains_nothing(tmp_path):
    text = script.train(script.Job(tasks=[["--lr=1"], ["--lr=2"]]))
    done = subprocess.run(["bash"], input=text, text=True, capture_output=True, cwd=tmp_path, env={"SLURM_ARRAY_TASK_ID": "2"})
    assert (done.returncode, done.stderr) == (2, "error: this script has tasks 0 to 1, not '2'\n")


@pytest.mark.parametrize("now, code", [("2", 0), ("3", 3), (None, 3)])
def test_a_run_that_has_stopped_early_is_finished_for_the_same_patience(tmp_path, now, code):
    """Also where its epochs are more now."""
    measured(tmp_path / "run", 1.0, made=24, epochs=20, patience=2)
    path = tmp_path / "run" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stopped_early": "stopped early after step 24"}))
    patience = [] if now is None else ["--patience", now]
    for epochs in ("20", "40"):
        assert finished.main(["--run-dir", str(tmp_path / "run"), "--epochs", epochs, *patience]) == code
