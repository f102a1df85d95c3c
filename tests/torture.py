"""Ranks killed at random instants of real runs, by seed: `python -m tests.torture --kills 1000 --seed 0` (make torture).

Each run is drawn: without shards or with --zero 1, with and without compression, with and without checkpoints under way, going on
with fewer ranks or with new ones. It must come to a loss within the spread of undisturbed runs on 2, 3 and 4 ranks, or end with
the message that says what was lost, or, seldom, that MPI did not get over it; nothing may hang. A strike leaves a process that is
some seconds old, as the younger may not be ranks yet. Wants Open MPI. Ends non-zero if a run did anything else.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from hpcai.comm import host, threads
from hpcai.comm.ulfm import RECOVERABLE
from hpcai.train import config
from hpcai.train.loop import fit
from tests.command import children, start

FLAGS = ["--hidden", "48", "--batch", "64", "--steps", "2500", "--lr", "3e-4", "--compress-smallest", "1"]
RANKS, LIMIT_S, SLOW_S, NEW_S = 4, 300, 3.0, 5.0
STUCK = re.compile(r"the (recovery from a failure|start of new ranks) did not end within")
"""What a run says that MPI did not get over: a limit of Open MPI, but no more than one run in STUCK_RUNS may end so."""
STUCK_RUNS = 50
LOST = "share of the optimizer state is lost"


class Drawn(NamedTuple):
    """One run: its options, whether new ranks come, and when how many die (seconds after the last strike, or the start)."""

    flags: tuple[str, ...]
    elastic: str
    checkpoints: bool
    strikes: list[tuple[float, int]]


class Outcome(NamedTuple):
    """What became of it: how it ended, ranks that were killed, and seconds from each strike until the others went on."""

    how: str
    killed: int
    recovered_s: list[float]
    said: str = ""


def draw(rng):
    flags = rng.choice([(), ("--zero", "1"), ("--compress", "int8"), ("--zero", "1", "--compress", "int8")])
    if rng.random() < 0.5:
        strikes = [(rng.uniform(0, 1.5), rng.choice([1, 2])) for _ in range(4)]
        return Drawn(flags, "grow", rng.random() < 0.5, strikes)
    strikes = rng.choice([[1], [2], [1, 1]])
    return Drawn(flags, "shrink", rng.random() < 0.5, [(rng.uniform(0, 1.5), count) for count in strikes])


def undisturbed(folder, flags):
    """Final test losses on 2, 3 and 4 ranks."""
    losses = []
    for ranks in (2, 3, 4):
        chosen = config.parse([*FLAGS, *flags, "--checkpoint-steps", "0", "--run", str(folder / "plain")])
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            losses.append(threads.run(ranks, lambda comm: fit(chosen, comm))[0]["test_loss"])  # noqa: B023
    return min(losses), max(losses)


def strike(process, rng, count):
    """SIGKILL so many of the ranks, at once or a moment apart; returns the time of the last and how many were there to kill."""
    ranks = sorted(children(process))
    victims = rng.sample(ranks, min(count, len(ranks) - 1))
    left = [pid for pid in ranks if pid not in victims]
    if victims and all(is_new(pid) for pid in left):  # and may not be a rank yet: then nobody would be left
        victims[victims.index(min(victims))] = left[0]
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return time.time(), 0
        time.sleep(rng.choice([0, rng.uniform(0, 0.05)]))
    return time.time(), len(victims)


def is_new(pid):
    """Whether a process was started in the last seconds."""
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return up_s - int(host.started(pid) or 0) / os.sysconf("SC_CLK_TCK") < NEW_S


def attempt(drawn, folder, rng, spread):
    """Make one run and look what became of it."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    flags = [
        *FLAGS,
        "--stall-timeout",
        "15",
        *drawn.flags,
        "--elastic",
        drawn.elastic,
        "--checkpoint-steps",
        "40" if drawn.checkpoints else "0",
    ]
    launcher = ["--with-ft", "ulfm", "--prtemca", RECOVERABLE, "1"]
    process = start(RANKS, *flags, "--run", run, launcher=launcher, errors=folder / "stderr", TMPDIR=str(folder))
    began, struck = time.monotonic(), []
    try:
        while not (run / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.005)
        for delay, count in drawn.strikes:
            time.sleep(delay)
            if process.poll() is not None or (run / "summary.json").exists():
                break
            at, killed = strike(process, rng, count)
            struck.append((at, killed))
            wait_until_gone_on(folder / "stderr", len(struck), process)
        process.wait(LIMIT_S - (time.monotonic() - began))
    except subprocess.TimeoutExpired:
        print("HUNG:", drawn, (folder / "stderr").read_text()[-2000:], flush=True)
        for pid in children(process):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        return Outcome("hung", sum(killed for _, killed in struck), [])
    return judged(drawn, process.returncode, struck, run, (folder / "stderr").read_text(errors="replace"), spread)


def wait_until_gone_on(errors, times, process):
    """Until the run has said so often that it goes on, or has ended."""
    end = time.monotonic() + 20
    while errors.read_text(errors="replace").count(" go on after step ") < times and process.poll() is None:
        if time.monotonic() > end:
            return
        time.sleep(0.01)


def judged(drawn, code, struck, run, said, spread):
    killed, last = sum(killed for _, killed in struck), told(said)
    if code in (85, -signal.SIGKILL) and STUCK.search(said):  # the launcher may not get over it either, and is killed then
        return Outcome("ended: MPI did not get over it", killed, [], last)
    if code == 85 and LOST in said and "--zero" in drawn.flags:
        return Outcome("ended: both copies of a shard lost", killed, [])
    if code != 0 or not (run / "summary.json").exists():
        clear = any(words in said for words in ("RankFailed", "ended while", "failed while"))
        epochs = re.findall(r"epoch +(\d+)/(\d+) ", said)
        if clear and (not epochs or epochs[-1][0] == epochs[-1][1]):
            return Outcome(f"ended with a message at the {'end' if epochs else 'start'}", killed, [])
        return Outcome(f"ended with code {code}", killed, [], last)
    summary = json.loads((run / "summary.json").read_text())
    low, high = spread
    margin = 3 * (high - low) + 1e-4 * high
    if not low - margin <= summary["test_loss"] <= high + margin:
        return Outcome("wrong loss", killed, [], f"{summary['test_loss']} not within {low - margin}..{high + margin}\n{last}")
    seen = [one["at"] for one in summary.get("recoveries", [])]
    took = [min((at - when for at in seen if at >= when), default=None) for when, count in struck if count]
    took = [one for one in took if one is not None]
    slow = max(took, default=0) > SLOW_S
    return Outcome("went on" if took else "killed when it had ended", killed, took, f"{took}\n{last}" if slow else "")


def told(said):
    """What a run said but of its epochs, not too much of it."""
    return "\n".join(line for line in said.splitlines() if not line.startswith("epoch"))[-4000:]


FINE = (
    "went on",
    "killed when it had ended",
    "ended: both copies of a shard lost",
    "ended: MPI did not get over it",
    "ended with a message at the start",
    "ended with a message at the end",
)


def main():
    parser = argparse.ArgumentParser(prog="tests.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0, help="end after so long, whatever was done")
    arguments = parser.parse_args()
    rng, outcomes, spreads, took = random.Random(arguments.seed), Counter(), {}, {"shrink": [], "grow": []}
    killed, end = 0, time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        while killed < arguments.kills and time.monotonic() < end:
            drawn = draw(rng)
            if drawn.flags not in spreads:
                spreads[drawn.flags] = undisturbed(Path(folder), drawn.flags)
            done = attempt(drawn, Path(folder), rng, spreads[drawn.flags])
            outcomes[done.how] += 1
            killed += done.killed
            took[drawn.elastic] += done.recovered_s
            if done.how not in FINE or done.said:
                print(f"{done.how}: {drawn}\n{done.said}", file=sys.stderr, flush=True)
            if sum(outcomes.values()) % 10 == 0:
                print(report(killed, outcomes, took), file=sys.stderr, flush=True)
    print(report(killed, outcomes, took))
    stuck, runs = outcomes["ended: MPI did not get over it"], sum(outcomes.values())
    return any(how not in FINE for how in outcomes) or stuck > max(1, runs / STUCK_RUNS)


def report(killed, outcomes, took):
    lines = [f"{killed} ranks killed in {sum(outcomes.values())} runs of {RANKS}: {dict(outcomes)}"]
    for name, values in took.items():
        if values:
            lines.append(
                f"  {name}: {len(values)} recoveries, median {statistics.median(values):.3f} s, worst {max(values):.3f} s"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
