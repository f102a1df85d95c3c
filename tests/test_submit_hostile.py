"""Whatever texts a submission is made of, it is refused in one line, or its script says and does what was given and nothing else."""

import os
import random

import pytest

from hpcai.errors import UsageError
from hpcai.submit import __main__ as submit
from hpcai.submit import quoting, script
from tests.hostile_submission import BREAKS, asked_value, check, directives, mutated_submission

pytestmark = pytest.mark.usefixtures("clean_environment")


def outcome(capsys, monkeypatch, folder, argv, env, cwd):
    """Exit code and script of a submission in a folder of that name; what is refused is refused in one line."""
    here = os.fsencode(folder) + b"/" + os.fsencode(cwd)
    os.mkdir(here)
    monkeypatch.chdir(os.fsdecode(here))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    code = submit.main(argv)
    out, err = capsys.readouterr()
    assert os.listdir(here) == []
    assert code in (0, 2), err
    assert (out, err.count("\n")) == ("", 1) if code else err == ""
    return code, out


@pytest.mark.parametrize("block", range(4))
def test_random_submissions(capsys, monkeypatch, tmp_path, block):
    """`make fuzz-inputs` makes more of them."""
    refused = 0
    for seed in range(20 * block, 20 * block + 20):
        argv, env, cwd = mutated_submission(random.Random(seed))
        (tmp_path / str(seed)).mkdir()
        with monkeypatch.context() as patched:
            code, text = outcome(capsys, patched, tmp_path / str(seed), argv, env, cwd)
            refused += bool(code)
        if not code:
            check(text, tmp_path / str(seed), argv, env)
    assert 0 < refused < 20


FIELDS = [name for name, default in script.Job._field_defaults.items() if default is None or not isinstance(default, int)]
NUMBERS = {"cpus_per_rank", "gpus_per_rank"}


@pytest.mark.parametrize("field", sorted(set(FIELDS) - NUMBERS))
@pytest.mark.parametrize("character", BREAKS, ids=ascii)
def test_no_field_of_a_script_takes_what_ends_a_line(field, character):
    hostile = f"a{character}#SBATCH --wrap=b"
    value = {"arguments": [hostile], "tasks": [["--lr=1"], [hostile]], "more": [hostile]}.get(field, hostile)
    for write in (script.train, script.bench):
        with pytest.raises(UsageError, match="take it out") as refused:
            write(script.Job()._replace(**{field: value}))
        assert str(refused.value).isprintable()


SOURCES = {
    "an option": (["--run-dir=a\nb"], {}, "here"),
    "the environment": ([], {"HPCAI_RUN_DIR": "a\nb"}, "here"),
    "a file": (["--config=../options.yaml"], {}, "here"),
    "the folder's name": (["--run-dir=runs"], {}, "he\nre"),
    "a folder's name that is not UTF-8": (["--run-dir=runs"], {}, "he\udcffre"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_line_break_is_refused_wherever_it_comes_from(capsys, monkeypatch, tmp_path, source):
    training, env, cwd = SOURCES[source]
    (tmp_path / "options.yaml").write_text('run_dir: "a\\nb"\n')
    assert outcome(capsys, monkeypatch, tmp_path, ["--dry-run", "--", *training], env, cwd)[0] == 2


WORDS = [
    "plain",
    "two words",
    "it's",
    'a "b" c',
    "back\\slash",
    "#1",
    "a#b",
    "$(id)",
    "`id`",
    "!",
    "-x",
    "%j",
    "packjob",
    "a HetJob",
    "é\u4e2d",
]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_reaches_slurm_as_it_was_given(word):
    job = script.Job(name=word, partition=word, account=word, more=[f"--comment={word}", f"--mem {word}"])
    asked = directives(script.train(job))
    assert [asked_value(asked, f"--{name}") for name in ("job-name", "partition", "account", "comment")] == [word] * 4
    assert asked[-2:] == ["--mem", word]


def test_a_log_lies_in_the_folder_that_was_named():
    asked = directives(script.train(script.Job(log=quoting.log_pattern("/a %j/b%%c", "slurm-%j.log"))))
    assert asked_value(asked, "--output") == "/a %%j/b%%%%c/slurm-%j.log"
    with pytest.raises(UsageError, match="backslash"):
        quoting.log_pattern("/a\\b", "slurm-%j.log")


@pytest.mark.parametrize(
    "name", ["SLURM_RESTART_COUNT", "SLURM_NNODES", "HPCAI_ELASTIC", "SLURM_NTASKS_PER_NODE", "HPCAI_SITE", "code"]
)
def test_the_script_by_hand_runs_nothing_that_a_variable_says(tmp_path, name):
    for value in ("a[$(touch canary)]", "$(touch canary)", "touch", "08", "1\ntouch canary"):
        text = script.train(script.Job(launcher="mpirun"))
        check(text, tmp_path, env={name: value})
        check(f"{text}\n", tmp_path, env={name: value})  # with the other MPI
