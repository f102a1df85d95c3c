"""What became of a run whose ranks were struck (torture.py), and whether that is fine."""

import json
import re
import signal
from collections import Counter
from typing import NamedTuple

from tests import witness

RANKS, SPARES, SLOW_S = 4, 3, 3.0
STALL_S, STALL_FROZEN_S = 15, 8
"""Time limits of waits in runs in which ranks are killed, or frozen: longer than others load a machine, shorter than we wait."""
STUCK = re.compile(r"the (recovery from a failure|start of new ranks) did not end within")
"""What a run says that MPI did not get over: a limit of Open MPI, but no more than one run in STUCK_RUNS may end so, and none that
has spare ranks.
"""
STUCK_RUNS = 50
STUCK_ENDED, UPON = "ended: MPI did not get over it", "struck upon a recovery"
LOST, NOBODY = "share of the optimizer state is lost", "all training ranks have ended"
ENDED = re.compile(r"process (\d+) is frozen and .*; it is ended")
"""Ranks that trained, that waited, or that were just about to train, which no recovery lists."""
VAIN, START = "ranks stalled twice after step", re.compile(r"StallError: (MPI did not start|rank \d+ waited)")


class Drawn(NamedTuple):
    """One run: its options, who comes in place of ranks that die (nobody for "shrink"), whether ranks share no memory, whether
    strikes come upon recoveries too, and when how many die (seconds after the last strike or its recovery, or the start).

    Of freezes: whether the first comes while the run starts, or in its first step, and for each how long it lasts (None: for good).
    """

    flags: tuple[str, ...]
    replacement: str
    checkpoints: bool
    apart: bool
    upon: bool
    strikes: list[tuple[float, int]]
    starting: bool = False
    early: bool = True
    thaws: tuple[float | None, ...] | None = None


class Outcome(NamedTuple):
    """What became of it: how it ended, ranks that were struck, and seconds from each strike until the others went on."""

    how: str
    struck: int
    recovered_s: list[float]
    said: str = ""


def judged(drawn, code, struck, run, said, spread):
    hit, last = sum(one.struck for one in struck), told(said)
    finished = (run / "summary.json").exists()
    if code in (85, -signal.SIGKILL) and STUCK.search(said):  # the launcher may not get over it either, and is killed then
        return Outcome(f"{STUCK_ENDED} ({UPON if drawn.upon else drawn.replacement})", hit, [], last)
    if code == 85 and LOST in said and "--zero" in drawn.flags:
        return Outcome("ended: both copies of a shard lost", hit, [])
    if code == 85 and NOBODY in said and hit >= RANKS:  # by a strike upon a recovery that was not done
        return Outcome("ended: all that trained were killed", hit, [])
    if code == 0 and drawn.upon and hit >= RANKS and not finished:  # as mpirun ends when all are killed
        return Outcome("ended: all that trained were killed", hit, [])
    if drawn.thaws is not None and code == 85 and VAIN in said:
        return Outcome("ended: waited in vain twice", hit, [], last)
    if code != 0 or not finished:
        return Outcome(*ended_otherwise(drawn, code, hit, said, last))
    summary = json.loads((run / "summary.json").read_text())
    if wrong := wrong_metrics(run / "metrics.jsonl", summary["steps"]):
        return Outcome("wrong metrics", hit, [], f"{wrong}\n{last}")
    if wrong := witness.difference(run, summary["ranks"], summary["steps"]):
        return Outcome("ranks ended with different parameters", hit, [], f"{wrong}\n{last}")
    low, high = spread
    margin = 3 * (high - low) + 1e-4 * high
    if not low - margin <= summary["test_loss"] <= high + margin:
        return Outcome("wrong loss", hit, [], f"{summary['test_loss']} not within {low - margin}..{high + margin}\n{last}")
    seen = [one["at"] for one in summary.get("recoveries", [])]
    took = [min((at - one.at for at in seen if at >= one.at), default=None) for one in struck if one.struck]
    if None not in took and (wrong := wrong_size(drawn, struck, summary, said)):
        return Outcome("wrong number of ranks", hit, [], f"{wrong}\n{last}")
    took = [one for one in took if one is not None]
    slow = max(took, default=0) > SLOW_S + (0 if drawn.thaws is None else STALL_FROZEN_S + 2)
    ended = "killed when it had ended" if drawn.thaws is None else "frozen when it had ended, or thawed in time"
    return Outcome("went on" if took else ended, hit, took, f"{took}\n{last}" if slow else "")


def ended_otherwise(drawn, code, hit, said, last):
    """How a run ended that did not come to its end, and which no rule foresees but those of its start and its end."""
    epochs = re.findall(r"epoch +(\d+)/(\d+) ", said)
    at_edge = not epochs or epochs[-1][0] == epochs[-1][1]
    if drawn.thaws is not None:
        fine = code == 85 and at_edge and START.search(said)
    else:
        fine = at_edge and any(words in said for words in ("RankFailed", "ended while", "failed while"))
    if fine:
        return f"ended with a message at the {'end' if epochs else 'start'}", hit, []
    return f"ended with code {code}", hit, [], last


def wrong_metrics(path, steps):
    """What is wrong with the lines of all steps."""
    found = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    expected = list(range(1, steps + 1))
    if found == expected:
        return ""
    lacking, twice = sorted(set(expected) - set(found)), sorted(step for step, count in Counter(found).items() if count > 1)
    return f"metrics lack {lacking[:9]}, have twice {twice[:9]}, in order: {found == sorted(found)}"


def wrong_size(drawn, struck, summary, said):
    """What is wrong with the number of ranks at the end, when the run has outlived all strikes."""
    frozen = drawn.thaws is not None
    lost = sum(len(one["lost"]) for one in summary.get("recoveries", [])) if frozen else sum(one.struck for one in struck)
    low = high = RANKS - lost
    if drawn.replacement == "spares":
        beside = sum(one.beside for one in struck)
        high = min(RANKS, high + SPARES - (0 if frozen else beside))
        low = min(RANKS, RANKS + SPARES - len(set(ENDED.findall(said))) if frozen else low + SPARES - beside)
    elif drawn.replacement == "grow":
        low = high = summary["ranks"] if "the failed ranks were not replaced" in said else RANKS
    return "" if low <= summary["ranks"] <= high else f"{summary['ranks']} ranks at the end, not {low} to {high}"


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
    "frozen when it had ended, or thawed in time",
    "ended: waited in vain twice",
)


def all_agree(outcomes):
    """Whether that many runs of each kind of end are."""
    stuck = sum(count for how, count in outcomes.items() if how.startswith(STUCK_ENDED) and UPON not in how)
    return all(how in FINE for how in outcomes) and stuck <= max(1, sum(outcomes.values()) / STUCK_RUNS)
