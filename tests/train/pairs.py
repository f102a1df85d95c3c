"""Two runs in one folder at once, by seed: `python -m tests.train.pairs --pairs 200 --seed 0`.

Of each pair exactly one must train: the other is refused with code 75 while the first one holds the folder, and touches nothing.
Runs start at random offsets, on one rank or two, afresh or with --resume auto, in a new folder or one that has a run, with their checkpoints in the run's folder or in one
that both name; a third of the pairs is killed at a random instant, after which a run with --resume auto must go on at once. Ends
non-zero if a pair did anything else.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from hpcai.comm import threads
from hpcai.train import resume
from hpcai.train.loop import fit
from hpcai.train.options.parser import parse
from tests.command import MPIRUN, children, environment

LIMIT_S, LONGEST_OFFSET_S, LONGEST_LIFE_S = 60, 1.0, 3.0
STEPS, HELD_S = 100, 8.0

FLAGS = ["--hidden", "8", "--batch", "64", "--steps", str(STEPS), "--checkpoint-steps", "20"]


class Done(NamedTuple):
    """How many pairs were made, how many of them were killed, and what went wrong."""

    pairs: int
    killed: int
    wrong: list[str]


# Both are held back in their first step until one of them was refused, so that they meet however slow the machine is.
PROGRAM = """
import sys, time
from pathlib import Path
from hpcai.train import __main__, lock, loop
lock.PATIENCE_S = 0.5
until, step = Path(sys.argv.pop(1)), loop._step
def held(run):
    end = time.monotonic() + {held}
    while not until.exists() and time.monotonic() < end:
        time.sleep(0.01)
    step(run)
loop._step = held
sys.exit(__main__.main())
"""


def begin(ranks, program, until, *flags):
    """A run, whose output goes to files beside `until`."""
    launcher = [MPIRUN, "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, program, until, *FLAGS, *flags]
    return subprocess.Popen(
        list(map(str, command)), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def end(process, program):
    """SIGKILL to all of it, ranks first."""
    if process.poll() is None:
        with contextlib.suppress(OSError):  # some of it ends meanwhile
            for pid in children(process, program.name.encode()):
                os.kill(pid, signal.SIGKILL)
        process.kill()


def attempt_pairs(folder, pairs, seed, limit_s=float("inf")):
    """Make so many pairs in that folder, or fewer within the time."""
    rng, wrong, killed, made, began = random.Random(seed), [], 0, 0, time.monotonic()
    program = folder / "held_run.py"
    program.write_text(PROGRAM.format(held=HELD_S))
    chosen = parse([*FLAGS, "--steps", "20", "--run-dir", str(folder / "earlier")])
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        threads.run(1, lambda comm: fit(chosen, comm))
    for made in range(1, pairs + 1):
        ranks, kill = 1 + made % 2, rng.random() < 1 / 3
        said = attempt(rng, folder, program, ranks, kill)
        killed += kill
        if said:
            wrong.append(f"pair {made} ({ranks} ranks{', killed' if kill else ''}): {said}")
            print(wrong[-1], file=sys.stderr, flush=True)
        if time.monotonic() - began > limit_s:
            break
    return Done(made, killed, wrong)


def attempt(rng, folder, program, ranks, kill):
    """One pair, and if it is killed a run after it; returns what was wrong."""
    run, until = folder / "run", folder / "until"
    until.unlink(missing_ok=True)
    for name in ("run", "other", "shared"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if rng.random() < 0.5:
        shutil.copytree(folder / "earlier", run)
    shared = ["--checkpoint-dir", folder / "shared", "--resume", "auto"] if rng.random() < 0.25 else []
    flags = [shared or (["--resume", "auto"] if rng.random() < 0.5 else []) for _ in range(2)]
    runs = [run, folder / "other" if shared and flags[1] is shared else run]
    if shared:
        flags = [shared, shared]
    both = [begin(ranks, program, until, "--run-dir", runs[0], *flags[0])]
    time.sleep(rng.uniform(0, LONGEST_OFFSET_S))
    both.append(begin(ranks, program, until, "--run-dir", runs[1], *flags[1]))
    try:
        if kill:
            time.sleep(rng.uniform(0, LONGEST_LIFE_S))
            for process in both:
                end(process, program)
            for process in both:
                process.communicate(timeout=LIMIT_S)
            return judged_after(begin(ranks, program, program, "--run-dir", run, *(shared or ["--resume", "auto"])))
        return judged(both, until, runs)
    finally:
        for process in both:
            end(process, program)
            process.communicate()


def judged(both, until, runs):
    """Exactly one trains, and the other says why it does not."""
    limit = time.monotonic() + LIMIT_S
    while all(process.poll() is None for process in both) and time.monotonic() < limit:
        time.sleep(0.01)
    until.touch()
    ended = [(process, *process.communicate(timeout=LIMIT_S)) for process in both]
    codes = sorted(process.returncode for process, _, _ in ended)
    if codes != [0, 75]:
        return f"codes {codes}: {[err for _, _, err in ended]}"
    said = [err for process, _, err in ended if process.returncode]
    lines = [line for line in said[0].splitlines() if "hpcai.train: error: " in line]
    if len(lines) != 1 or "is in use by another run (process" not in lines[0] or "Traceback" in said[0]:
        return f"said {said}"
    (winner,) = [where for (process, _, _), where in zip(ended, runs, strict=True) if process.returncode == 0]
    return judged_files(winner, "--checkpoint-dir" in both[0].args)


def judged_after(process):
    """After a kill a run goes on at once."""
    try:
        _, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return "after a kill a run hung"
    return f"after a kill code {process.returncode}: {err}" if process.returncode else ""


def judged_files(run, elsewhere):
    """The files are of one run: metrics of all steps in order, and the last checkpoint."""
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    if steps and steps != list(range(steps[0], STEPS + 1)):
        return f"metrics of steps {steps}"
    newest = resume.newest(run)
    return "" if elsewhere or (newest and newest.name == f"step-{STEPS:09d}") else f"the newest checkpoint is {newest}"


def main():
    parser = argparse.ArgumentParser(prog="tests.train.pairs", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0, help="end after so long, whatever was done")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = attempt_pairs(Path(folder), arguments.pairs, arguments.seed, 60 * arguments.minutes)
    print(f"{done.pairs} pairs, {done.killed} of them killed; {len(done.wrong)} went wrong")
    return 1 if done.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
