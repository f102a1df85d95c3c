"""Ranks killed or frozen at random instants of real runs, by seed: `python -m tests.torture --kills 1000 --seed 0` (make torture), or
`--freeze 200`. With --first rank 0 is always among them.

Each run is drawn: without shards or with --zero 1, with and without compression, with and without checkpoints under way, over
shared memory or messages, going on with fewer ranks, with spare ones (of which some are killed too), or with new ones. A strike
comes when the run has got over the one before; with --upon SHARE some do not wait for that. A run must come
to a loss within the spread of undisturbed runs on 2, 3 and 4 ranks, or end with the message that says what was lost, or, seldom,
that MPI did not get over it; nothing may hang. A strike leaves a process that is some seconds old, as the younger may not be ranks
yet. All lines of metrics must be there in order, and all ranks must end with the same parameters, to the bit. Wants Open MPI. Ends non-zero if a run did anything else.

A freeze (SIGSTOP) may come while a run starts, and while the others are busy with the one before; some ranks are thawed after a
while, at times all ranks are frozen and thawed. Within --stall-timeout and some seconds the others must go on without those that are
not, or end with 85 and a message; no process may be left.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter

from hpcai.comm import threads
from hpcai.comm.wires.ulfm import RECOVERABLE
from hpcai.train.loop import fit
from hpcai.train.options.parser import parse
from tests import owned, strikes
from tests.command import children, end, start
from tests.verdicts import FINE, RANKS, SPARES, STALL_FROZEN_S, STALL_S, Drawn, Outcome, all_agree, judged, told

FLAGS = ["--hidden", "48", "--activation", "gelu", "--batch", "64", "--lr", "3e-4", "--compress-smallest", "1"]
"""With ReLU one unit hardly learns, and whether what is owed to it revives it is a matter of rounding: 0.1 to 0.6 % of the loss."""

LIMIT_S, STEPS, STEPS_FROZEN = 300, 2500, 400


def draw(rng, apart, upon):
    flags = rng.choice([(), ("--zero", "1"), ("--compress", "int8"), ("--zero", "1", "--compress", "int8")])
    replacement = rng.choice(["shrink", "spares", "grow"])
    deaths = rng.choice([[1], [2], [1, 1]]) if replacement == "shrink" else rng.choices([1, 2], k=4)
    planned = [(rng.uniform(0, 1.5), count) for count in deaths]
    return Drawn(flags, replacement, rng.random() < 0.5, rng.random() < apart, rng.random() < upon, planned)


def draw_freezes(rng, apart, upon):
    drawn = draw(rng, apart, upon)
    lasting = [rng.uniform(0, 2.5 * STALL_FROZEN_S) if rng.random() < 0.25 else None for _ in drawn.strikes]
    if rng.random() < 0.15:  # the whole job
        drawn.strikes[0], lasting[0] = (drawn.strikes[0][0], RANKS + SPARES), 1.5 * STALL_FROZEN_S
    if starting := rng.random() < 0.1:
        drawn.strikes[0] = (rng.uniform(0, 3), drawn.strikes[0][1])
    if drawn.upon:
        drawn.strikes[1:] = [(rng.uniform(0, 2 * STALL_FROZEN_S), count) for _, count in drawn.strikes[1:]]
    return drawn._replace(starting=starting, early=rng.random() < 0.2, thaws=tuple(lasting))


def undisturbed(folder, flags, steps):
    """Final test losses on 2, 3 and 4 ranks."""
    losses = []
    for ranks in (2, 3, 4):
        chosen = parse([*FLAGS, "--steps", str(steps), *flags, "--checkpoint-steps", "0", "--run-dir", str(folder / "plain")])
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            losses.append(threads.run(ranks, lambda comm: fit(chosen, comm))[0]["test_loss"])  # noqa: B023
    return min(losses), max(losses)


def attempt(drawn, folder, rng, spread, steps, first=False):
    """Make one run and look what became of it."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    process = begun(drawn, folder, run, steps)
    began, struck = time.monotonic(), []
    try:
        while not drawn.starting and not under_way(run / "metrics.jsonl", drawn.early) and process.poll() is None:
            time.sleep(0.005)
        for number, (delay, count) in enumerate(drawn.strikes):
            time.sleep(delay)
            if process.poll() is not None or (run / "summary.json").exists():
                break
            said = times_gone_on(folder / "stderr")
            struck.append(strike(process, rng, drawn, count, number, first))
            if not drawn.upon and not gone_on(folder / "stderr", said + 1, process, struck[-1]):
                break  # to its end, whatever that is: of those that are left perhaps only one is a rank yet
        process.wait(LIMIT_S - (time.monotonic() - began))
    except subprocess.TimeoutExpired:
        print("HUNG:", drawn, (folder / "stderr").read_text()[-2000:], flush=True)
        end(process)
        return Outcome("hung", sum(one.struck for one in struck), [])
    said = (folder / "stderr").read_text(errors="replace")
    if left := left_behind(struck):
        return Outcome("a process was left", sum(one.struck for one in struck), [], f"{left}\n{told(said)}")
    return judged(drawn, process.returncode, struck, run, said, spread)


def under_way(metrics, early):
    """Whether a run has begun, or has made steps."""
    return metrics.exists() and (early or metrics.stat().st_size > 0)


def begun(drawn, folder, run, steps):
    """The launcher of one run."""
    spares = SPARES if drawn.replacement == "spares" else 0
    stall_s = STALL_S if drawn.thaws is None else STALL_FROZEN_S
    flags = [*FLAGS, "--steps", steps, "--stall-timeout", stall_s, *drawn.flags, "--spare-ranks", spares, "--run-dir", run]
    flags += ["--elastic", "grow" if drawn.replacement == "grow" else "shrink"]
    flags += ["--checkpoint-steps", "40" if drawn.checkpoints else "0"]
    variables = {"TMPDIR": str(folder), "HPCAI_TIMEOUT_S": str(STALL_S)} | ({"HPCAI_NODE": "0"} if drawn.apart else {})
    launcher = ["--with-ft", "ulfm", "--prtemca", RECOVERABLE, "1"]
    program = ("-m", "tests.witness", "hpcai.train")
    return start(RANKS + spares, *flags, program=program, launcher=launcher, errors=folder / "stderr", **variables)


def strike(process, rng, drawn, count, number, first):
    """Kill or freeze so many ranks, or freeze all."""
    spares = drawn.replacement == "spares"
    if count > RANKS:
        every = children(process)
        return strikes.freeze(every, every[:RANKS], rng, drawn.thaws[number])
    victims, train = strikes.chosen(process, rng, count, RANKS, spares, first)
    return strikes.kill(victims, train, rng) if drawn.thaws is None else strikes.freeze(victims, train, rng, drawn.thaws[number])


def left_behind(struck):
    """Processes that were frozen and live when the launcher has ended."""
    end, victims = time.monotonic() + 2, [victim for one in struck for victim in one.victims]
    while any(map(strikes.state, victims)) and time.monotonic() < end:
        time.sleep(0.05)
    return [(pid, strikes.state((pid, began))) for pid, began in victims if strikes.state((pid, began))]


def times_gone_on(errors):
    return len(re.findall(" goe?s? on after step ", errors.read_text(errors="replace")))


def gone_on(errors, times, process, last):
    """Wait until the run has said so often that it goes on, or has ended, or all that were frozen are thawed; false if it takes
    long.
    """
    end = time.monotonic() + 20 + (4 * STALL_FROZEN_S if last.victims else 0)
    while process.poll() is None:
        thawed = last.thawed is not None and time.monotonic() > last.thawed
        if times_gone_on(errors) >= times or (thawed and all(map(strikes.state, last.victims))):
            break
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def main():
    parser = argparse.ArgumentParser(prog="tests.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--freeze", type=int, default=0, help="freeze so many ranks instead of killing some")
    parser.add_argument("--first", action="store_true", help="rank 0 is always among them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0, help="end after so long, whatever was done")
    parser.add_argument("--apart", type=float, default=0.25, help="share of runs whose ranks share no memory, as on many nodes")
    parser.add_argument("--upon", type=float, default=0.0, help="share of runs in which strikes come upon recoveries too")
    parser.add_argument("--steps", type=int, help=f"of a run ({STEPS}, or {STEPS_FROZEN} with --freeze)")
    arguments = parser.parse_args()
    rng, outcomes, spreads = random.Random(arguments.seed), Counter(), {}
    took = {"shrink": [], "spares": [], "grow": []}
    wanted, drawing = (arguments.freeze, draw_freezes) if arguments.freeze else (arguments.kills, draw)
    steps = arguments.steps or (STEPS_FROZEN if arguments.freeze else STEPS)
    struck, until = 0, time.monotonic() + 60 * arguments.minutes
    folder = owned.folder("torture")
    while struck < wanted and time.monotonic() < until:
        drawn = drawing(rng, arguments.apart, arguments.upon)
        if drawn.flags not in spreads:
            spreads[drawn.flags] = undisturbed(folder, drawn.flags, steps)
        done = attempt(drawn, folder, rng, spreads[drawn.flags], steps, arguments.first)
        outcomes[done.how] += 1
        struck += done.struck
        took[drawn.replacement] += done.recovered_s
        if done.how not in FINE or done.said:
            print(f"{done.how}: {drawn}\n{done.said}", file=sys.stderr, flush=True)
        if sum(outcomes.values()) % 10 == 0:
            print(report(struck, outcomes, took), file=sys.stderr, flush=True)
    print(report(struck, outcomes, took))
    return not all_agree(outcomes)


def report(struck, outcomes, took):
    lines = [f"{struck} ranks struck in {sum(outcomes.values())} runs of {RANKS}: {dict(outcomes)}"]
    for name, values in [*took.items(), ("all", [one for recovered in took.values() for one in recovered])]:
        if values:
            lines.append(
                f"  {name}: {len(values)} recoveries, median {statistics.median(values):.3f} s, worst {max(values):.3f} s"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
