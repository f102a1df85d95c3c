"""Ranks killed at random instants of real runs, by seed: `python -m tests.torture --kills 1000 --seed 0` (make torture).

Each run is drawn: without shards or with --zero 1, with and without compression, with and without checkpoints under way, over
shared memory or messages, going on with fewer ranks, with spare ones (of which some are killed too), or with new ones. A strike
comes when the run has got over the one before; with --upon SHARE some do not wait for that. A run must come
to a loss within the spread of undisturbed runs on 2, 3 and 4 ranks, or end with the message that says what was lost, or, seldom,
that MPI did not get over it; nothing may hang. A strike leaves a process that is some seconds old, as the younger may not be ranks
yet. Wants Open MPI. Ends non-zero if a run did anything else.
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
RANKS, SPARES, LIMIT_S, SLOW_S, NEW_S = 4, 3, 300, 3.0, 5.0
STUCK = re.compile(r"the (recovery from a failure|start of new ranks) did not end within")
"""What a run says that MPI did not get over: a limit of Open MPI, but no more than one run in STUCK_RUNS may end so, and none that
has spare ranks.
"""
STUCK_RUNS = 50
STUCK_ENDED, UPON = "ended: MPI did not get over it", "struck upon a recovery"
LOST, NOBODY = "share of the optimizer state is lost", "all ranks that trained have ended"


class Drawn(NamedTuple):
    """One run: its options, who comes in place of ranks that die (nobody for "shrink"), whether ranks share no memory, whether
    strikes come upon recoveries too, and when how many die (seconds after the last strike or its recovery, or the start).
    """

    flags: tuple[str, ...]
    replacement: str
    checkpoints: bool
    apart: bool
    upon: bool
    strikes: list[tuple[float, int]]


class Strike(NamedTuple):
    """The time of the last death of a rank that trained, how many died that trained, and how many that waited."""

    at: float
    killed: int
    beside: int


class Outcome(NamedTuple):
    """What became of it: how it ended, ranks that were killed, and seconds from each strike until the others went on."""

    how: str
    killed: int
    recovered_s: list[float]
    said: str = ""


def draw(rng, apart, upon):
    flags = rng.choice([(), ("--zero", "1"), ("--compress", "int8"), ("--zero", "1", "--compress", "int8")])
    replacement = rng.choice(["shrink", "spares", "grow"])
    deaths = rng.choice([[1], [2], [1, 1]]) if replacement == "shrink" else rng.choices([1, 2], k=4)
    strikes = [(rng.uniform(0, 1.5), count) for count in deaths]
    return Drawn(flags, replacement, rng.random() < 0.5, rng.random() < apart, rng.random() < upon, strikes)


def undisturbed(folder, flags):
    """Final test losses on 2, 3 and 4 ranks."""
    losses = []
    for ranks in (2, 3, 4):
        chosen = config.parse([*FLAGS, *flags, "--checkpoint-steps", "0", "--run", str(folder / "plain")])
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            losses.append(threads.run(ranks, lambda comm: fit(chosen, comm))[0]["test_loss"])  # noqa: B023
    return min(losses), max(losses)


def strike(process, rng, count, spares):
    """SIGKILL so many of the ranks that train, at once or a moment apart, and at times a spare one too."""
    ranks = sorted(children(process), key=rank_of) if spares else sorted(children(process))
    ranks, waiting = ranks[:RANKS], ranks[RANKS:]
    victims = rng.sample(ranks, min(count, len(ranks) - 1))
    if waiting and rng.random() < 0.2:
        victims.insert(rng.randrange(len(victims) + 1), rng.choice(waiting))
    left = [pid for pid in ranks if pid not in victims]
    if victims and not spares and all(is_new(pid) for pid in left):  # and may not be a rank yet: then nobody would be left
        victims[victims.index(min(victims))] = left[0]
    killed, beside, at = 0, 0, time.time()
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):  # the run has ended
            os.kill(victim, signal.SIGKILL)
            killed, beside = killed + (victim in ranks), beside + (victim in waiting)
            at = time.time() if victim in ranks else at
        time.sleep(rng.choice([0, rng.uniform(0, 0.05)]))
    return Strike(at, killed, beside)


def rank_of(pid):
    """In the launcher's numbers: those that train are the lowest that live."""
    with contextlib.suppress(OSError):
        found = re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
        return int(found[1]) if found else -1
    return -1


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
        "grow" if drawn.replacement == "grow" else "shrink",
        "--checkpoint-steps",
        "40" if drawn.checkpoints else "0",
    ]
    spares = SPARES if drawn.replacement == "spares" else 0
    variables = {"TMPDIR": str(folder)} | ({"HPCAI_NODE": "0"} if drawn.apart else {})
    launcher = ["--with-ft", "ulfm", "--prtemca", RECOVERABLE, "1"]
    process = start(
        RANKS + spares, *flags, "--spares", spares, "--run", run, launcher=launcher, errors=folder / "stderr", **variables
    )
    began, struck = time.monotonic(), []
    try:
        while not (run / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.005)
        for delay, count in drawn.strikes:
            time.sleep(delay)
            if process.poll() is not None or (run / "summary.json").exists():
                break
            said = times_gone_on(folder / "stderr")
            struck.append(strike(process, rng, count, spares))
            if not drawn.upon and not gone_on(folder / "stderr", said + 1, process):
                break  # to its end, whatever that is: of those that are left perhaps only one is a rank yet
        process.wait(LIMIT_S - (time.monotonic() - began))
    except subprocess.TimeoutExpired:
        print("HUNG:", drawn, (folder / "stderr").read_text()[-2000:], flush=True)
        for pid in children(process):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        return Outcome("hung", sum(one.killed for one in struck), [])
    return judged(drawn, process.returncode, struck, run, (folder / "stderr").read_text(errors="replace"), spread)


def times_gone_on(errors):
    return errors.read_text(errors="replace").count(" go on after step ")


def gone_on(errors, times, process):
    """Wait until the run has said so often that it goes on, or has ended; false if it takes long."""
    end = time.monotonic() + 20
    while times_gone_on(errors) < times and process.poll() is None:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def judged(drawn, code, struck, run, said, spread):
    killed, last = sum(one.killed for one in struck), told(said)
    if code in (85, -signal.SIGKILL) and STUCK.search(said):  # the launcher may not get over it either, and is killed then
        return Outcome(f"{STUCK_ENDED} ({UPON if drawn.upon else drawn.replacement})", killed, [], last)
    if code == 85 and LOST in said and "--zero" in drawn.flags:
        return Outcome("ended: both copies of a shard lost", killed, [])
    if code == 85 and NOBODY in said and killed >= RANKS:  # by a strike upon a recovery that was not done
        return Outcome("ended: all that trained were killed", killed, [])
    if code == 0 and drawn.upon and killed >= RANKS and not (run / "summary.json").exists():  # as mpirun ends when all are killed
        return Outcome("ended: all that trained were killed", killed, [])
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
    took = [min((at - one.at for at in seen if at >= one.at), default=None) for one in struck if one.killed]
    if None not in took and (wrong := wrong_size(drawn, struck, summary, said)):
        return Outcome("wrong number of ranks", killed, [], f"{wrong}\n{last}")
    took = [one for one in took if one is not None]
    slow = max(took, default=0) > SLOW_S
    return Outcome("went on" if took else "killed when it had ended", killed, took, f"{took}\n{last}" if slow else "")


def wrong_size(drawn, struck, summary, said):
    """What is wrong with the number of ranks at the end, when the run has outlived all strikes."""
    alive = RANKS - sum(one.killed for one in struck)
    if drawn.replacement == "spares":
        alive = min(RANKS, alive + SPARES - sum(one.beside for one in struck))
    elif drawn.replacement == "grow":
        alive = summary["ranks"] if "no ranks came" in said else RANKS
    return "" if summary["ranks"] == alive else f"{summary['ranks']} ranks at the end, not {alive}"


def told(said):
    """What a run said but of its epochs, not too much of it."""
    return "\n".join(line for line in said.splitlines() if not line.startswith("epoch"))[-4000:]


FINE = (
    "went on",
    "killed when it had ended",
    "ended: both copies of a shard lost",
    "ended: all that trained were killed",
    *(f"{STUCK_ENDED} ({what})" for what in ("shrink", "grow", UPON)),
    "ended with a message at the start",
    "ended with a message at the end",
)


def main():
    parser = argparse.ArgumentParser(prog="tests.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0, help="end after so long, whatever was done")
    parser.add_argument("--apart", type=float, default=0.25, help="share of runs whose ranks share no memory, as on many nodes")
    parser.add_argument("--upon", type=float, default=0.0, help="share of runs in which strikes come upon recoveries too")
    arguments = parser.parse_args()
    rng, outcomes, spreads = random.Random(arguments.seed), Counter(), {}
    took = {"shrink": [], "spares": [], "grow": []}
    killed, end = 0, time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        while killed < arguments.kills and time.monotonic() < end:
            drawn = draw(rng, arguments.apart, arguments.upon)
            if drawn.flags not in spreads:
                spreads[drawn.flags] = undisturbed(Path(folder), drawn.flags)
            done = attempt(drawn, Path(folder), rng, spreads[drawn.flags])
            outcomes[done.how] += 1
            killed += done.killed
            took[drawn.replacement] += done.recovered_s
            if done.how not in FINE or done.said:
                print(f"{done.how}: {drawn}\n{done.said}", file=sys.stderr, flush=True)
            if sum(outcomes.values()) % 10 == 0:
                print(report(killed, outcomes, took), file=sys.stderr, flush=True)
    print(report(killed, outcomes, took))
    stuck = sum(count for how, count in outcomes.items() if how.startswith(STUCK_ENDED) and UPON not in how)
    runs = sum(outcomes.values())
    return any(how not in FINE for how in outcomes) or stuck > max(1, runs / STUCK_RUNS)


def report(killed, outcomes, took):
    lines = [f"{killed} ranks killed in {sum(outcomes.values())} runs of {RANKS}: {dict(outcomes)}"]
    for name, values in [*took.items(), ("all", [one for recovered in took.values() for one in recovered])]:
        if values:
            lines.append(
                f"  {name}: {len(values)} recoveries, median {statistics.median(values):.3f} s, worst {max(values):.3f} s"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
