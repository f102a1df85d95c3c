"""Submissions as nobody means them, made from a seed, and a judge of the scripts that come of them: bash runs a script under
programs that pretend to be Slurm, launchers and Python, in a folder where nothing but they may leave something.
"""

import os
import re
import stat
import subprocess
from pathlib import Path

CANARY = "canary"
BREAKS = ("\n", "\r", "\t", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u2029", "\x00", "\udcff", "\x0b", "\x1f")
"""What no script may hold."""

PIECES = (
    f"\n#SBATCH --wrap='touch {CANARY}'\n", f"\ntouch {CANARY}\n", f"$(touch {CANARY})", f"`touch {CANARY}`",
    f"; touch {CANARY};", f"' touch {CANARY} '", f'" touch {CANARY} "', f"') ; touch {CANARY} ; (", f"a[$(touch {CANARY})]",
    "a", "b c", "-x", "--version", "'", '"', "\\", "\\\\", "!", "!!", "$HOME", "${IFS}", "%j", "%A_%a", "%%", "#", " # ", "*", "?",
    "~", "[a-z]", "{a,b}", "&", "|", ">", "<(ls)", "=", ",", ";", ":", "packjob", "hetJOB", "é", "\u4e2d", "\U0001f600", "\u202e",
    "\u00a0", " ", "  ", "x" * 300, "y" * 5000, "(", ")", "esac", "done", "EOF", "/", "..", ".",
)  # fmt: skip

TRAINING = ("--run-dir", "--label-column", "--ignore-columns", "--data-dir", "--metrics-file", "--trace-file", "--checkpoint-dir")
SUBMITTING = ("--name", "--partition", "--account", "--sbatch=--comment", "--sbatch=--dependency", "--sbatch=-C")
VARIABLES = (
    "HPCAI_RUN_DIR", "HPCAI_LABEL_COLUMN", "HPCAI_DATA_DIR", "HPCAI_CHECKPOINT_DIR", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_NNODES",
    "SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK", "SLURM_ARRAY_JOB_ID", "HPCAI_LAUNCHER", "HPCAI_LAUNCHER_OPTIONS", "HPCAI_SITE",
    "code", "elastic", "unsure", "child", "asked",
)  # fmt: skip
DIRECTIVES = {"--name": "--job-name", "--partition": "--partition", "--account": "--account", "--time": "--time"}

RECORD = """#!/bin/bash
printf '%s\\0' "$#" "${{0##*/}}" "$@" >> {bin}/called
case "$*" in *--mpi=list*) echo pmix ;; *Get_library*) echo "{library}" ;; esac
case "${{0##*/}} $*" in "squeue "*) echo RUNNING ;; "srun "*hpcai.train*|"mpirun "*hpcai.train*) exit {code} ;; esac
"""


def text(rng):
    """One to four pieces; one in twelve texts has something that no script can hold."""
    pieces = [rng.choice(PIECES) for _ in range(rng.randint(1, 4))]
    if rng.random() < 1 / 12:
        pieces.insert(rng.randint(0, len(pieces)), rng.choice(BREAKS))
    return "".join(pieces)


def mutated_submission(rng):
    """Options of hpcai.submit, variables of the environment, and a name for the folder to be in; rng: a random.Random.

    Texts that an operating system cannot hand over are left out: NUL in all, / and dots in names of folders.
    """
    argv = [f"{name}={_handed(rng)}" for name in SUBMITTING if rng.random() < 0.2]
    argv += [f"--sbatch={rng.choice(('--mem', '-C', '--qos'))} {_handed(rng)}"] if rng.random() < 0.1 else []
    argv += [f"--time={rng.choice(('1:00:00', '90', '1-0', _handed(rng)))}"] if rng.random() < 0.1 else []
    argv += ["--launcher", rng.choice(("auto", "srun-pmi2", "mpirun"))] if rng.random() < 0.3 else []
    argv += [f"--sweep=label={_handed(rng)};{_handed(rng)}"] if rng.random() < 0.2 else []
    training = [f"{name}={_handed(rng)}" for name in TRAINING if rng.random() < 0.15]
    training += ["--compress=int8", f"--compress-layers={_handed(rng).replace('=', '')}=none"] if rng.random() < 0.1 else []
    training += ["--", _handed(rng)] if rng.random() < 0.02 else []
    env = {name: _handed(rng) for name in VARIABLES if rng.random() < 0.15}
    cwd = _handed(rng).replace("/", "_").encode("utf-8", "surrogateescape")[:100].decode("utf-8", "ignore")
    return [*argv, "--dry-run", "--", *training], env, "plain" if cwd in (".", "..", "") or rng.random() < 0.5 else cwd


def _handed(rng):
    return text(rng).replace("\0", "\n")


def check(script_text, folder, argv=(), env=None):
    """Raise AssertionError unless the script is bash, runs nothing that texts in it name, and hands on what was given.

    It is run in a folder of its own below `folder`. argv, env: as given to hpcai.submit, as far as they are known.
    """
    folder = Path(folder)
    bin, here = folder / "judge-bin", folder / "judge-here"
    _pretend(bin, script_text)
    here.mkdir(exist_ok=True)
    (bin / "script").write_text(script_text, encoding="utf-8")
    assert subprocess.run(["bash", "-n", bin / "script"], capture_output=True, timeout=10).returncode == 0, "bash -n"
    asked = directives(script_text)
    _judge_directives(asked, list(argv))
    tasks = range(sum(word.startswith("--array=") for word in asked) and int(asked_value(asked, "--array").split("-")[1]) + 1)
    for task in (*([*tasks][:2]), None) if tasks else (None,):
        _run(bin, here, env or {}, task)
        assert not list(folder.rglob(CANARY)), "a text was run"
        assert not list(here.iterdir()), f"left behind: {list(here.iterdir())}"
        _judge_calls(bin, list(argv), task)


def _pretend(bin, script_text):
    """The programs that a script may call; its length decides which MPI they are, and how training ends."""
    bin.mkdir(exist_ok=True)
    library, code = ("Open MPI v5", 0) if len(script_text) % 2 else ("MPICH 5", 85)
    program = RECORD.format(bin=bin, library=library, code=code)
    for name in ("python", "srun", "mpirun", "squeue", "scontrol", "sleep"):
        (bin / name).write_text(program)
        (bin / name).chmod(stat.S_IRWXU)


def _run(bin, here, env, task):
    (bin / "called").write_bytes(b"")
    script = (bin / "script").read_text(encoding="utf-8")
    python = re.search(r"^python=\(.*\)$", script, re.MULTILINE)
    (bin / "run").write_text(script.replace(python[0], "python=(python)"), encoding="utf-8")
    given = {name: value for name, value in env.items() if "\0" not in value}
    slurms = {"SLURM_JOB_ID": "41", "PATH": f"{bin}:/usr/bin:/bin", "HOME": "/nowhere"} | given
    slurms |= {} if task is None else {"SLURM_ARRAY_TASK_ID": str(task)}
    done = subprocess.run(["bash", bin / "run"], cwd=here, env=slurms, capture_output=True, timeout=30)
    for words in (b"unbound", b"syntax error", b"command not found", b"ambiguous redirect", b"numeric argument"):
        assert words not in done.stderr, done.stderr


def _judge_calls(bin, argv, task):
    """Training was started with exactly what stood behind --, in order, and what the script adds."""
    trained = [call for call in _calls(bin / "called") if call[0] in ("srun", "mpirun") and "hpcai.train" in call]
    assert len(trained) <= 1
    if not trained or "--" not in argv:
        return
    words = trained[0][trained[0].index("hpcai.train") + 1 :]
    given = argv[argv.index("--") + 1 :]
    assert words[: len(given)] == given, (words, given)
    assert words[-2:] == ["--resume", "auto"]
    more = words[len(given) : -2]
    assert bool(more) == (task is not None), more
    assert all(word.startswith(("--label-column=", "--run-dir=", "--checkpoint-dir=")) for word in more), more


def _calls(path):
    """The words of each call that a pretended program wrote down, after their count."""
    words = iter(os.fsdecode(path.read_bytes()).split("\0")[:-1])
    return [[next(words) for _ in range(int(count) + 1)] for count in words]


def _judge_directives(asked, argv):
    """Each line asks one thing, and each thing that was given is asked for as it was given."""
    submitting = argv[: argv.index("--")] if "--" in argv else argv
    for name, option in DIRECTIVES.items():
        given = [word.split("=", 1)[1] for word in submitting if word.startswith(f"{name}=")]
        assert not given or asked_value(asked, option) == given[-1], (option, asked)
    further = [word.removeprefix("--sbatch=") for word in submitting if word.startswith("--sbatch=")]
    for option in further:
        name, space, value = option.partition(" ")
        words = [name, value.strip()] if space and "=" not in name else [option]
        assert all(word in asked for word in words if word), (words, asked)
    known = {"--job-name", "--nodes", "--ntasks-per-node", "--time", "--partition", "--account", "--output", "--requeue"}
    known |= {"--open-mode", "--signal", "--array"}
    others = [word for word in asked if word.split("=")[0] not in known]
    assert len(others) <= 2 * len(further) or not argv, others


def asked_value(asked, option):
    """The value of --OPTION=VALUE."""
    return next(word.split("=", 1)[1] for word in asked if word.startswith(f"{option}="))


def directives(script):
    """The words behind #SBATCH as Slurm (22.05; src/sbatch/opt.c, _get_argument) reads them, up to the first command."""
    found = []
    for line in script.split("\n"):
        if line.startswith("#SBATCH"):
            found += _words(line.removeprefix("#SBATCH"))
        elif line.strip() and not line.startswith("#"):
            break
    return found


def _words(line):
    for name in ("packjob", "hetjob"):
        line = re.sub(name, lambda found: " " * len(found[0]), line, flags=re.IGNORECASE)
    found, word, quote, i = [], None, "", 0
    while i < len(line):
        character = line[i]
        if character == "\\" and i + 1 < len(line):
            i += 1
            word = (word or "") + line[i]
        elif quote:
            quote, word = ("", word) if character == quote else (quote, word + character)
        elif character in "\"'":
            quote, word = character, word or ""
        elif character == "#":
            break
        elif character in " \t\v\f\r":
            found, word = found + ([] if word is None else [word]), None
        else:
            word = (word or "") + character
        i += 1
    assert not quote, f"unmatched quote: {line}"
    return found + ([] if word is None else [word])
