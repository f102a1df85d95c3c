"""Pipeline schedules as data: for each rank, the order of its actions on micro-batches. No communicators, no arrays.

A model is cut into ranks * chunks stages; stage s is chunk s // ranks of rank s % ranks. An action is one of

    F  forward of a micro-batch through a stage
    B  its backward, for the gradients of input and weights
    I  its backward for the input alone, so that the previous stage can continue
    W  the weights' gradients, which I did not compute

F of stage s needs F of stage s - 1. B or I of stage s needs B or I of stage s + 1; in the last stage it needs F of that stage.
All are of the same micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hpcai.errors import UsageError


class Action(NamedTuple):
    """One action of one rank. kind: F, B, I or W; micro: the micro-batch; chunk: which of the rank's stages."""

    kind: str
    micro: int
    chunk: int = 0


Plan = tuple[tuple[Action, ...], ...]
"""For each rank its actions in order."""

NAMES = ("gpipe", "1f1b", "interleaved", "zb-h1")


def plan(name: str, ranks: int, micros: int, chunks: int = 1) -> Plan:
    """Return the schedule of that name. Raises: UsageError for an unknown name, or wrong numbers of micro-batches or chunks."""
    if name not in NAMES:
        raise UsageError(f"--pipeline-schedule {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if name != "interleaved" and chunks != 1:
        raise UsageError(f"--pipeline-chunks {chunks} is for --pipeline-schedule interleaved; {name} has one chunk a rank")
    if name == "interleaved" and ranks > 1 and micros % ranks:
        near = max(ranks, micros // ranks * ranks)
        raise UsageError(
            f"--pipeline-schedule interleaved wants --micro-batches divisible by pp={ranks}, got {micros}; "
            f"take {near} or {near + ranks}"
        )
    return {"gpipe": gpipe, "1f1b": one_f_one_b, "interleaved": interleaved, "zb-h1": zb_h1}[name](ranks, micros, chunks)


def gpipe(ranks: int, micros: int, chunks: int = 1) -> Plan:
    """All forwards, then all backwards; the activations of all micro-batches are kept. Source: Huang et al., arXiv:1811.06965."""
    return tuple(tuple(Action(kind, m) for kind in "FB" for m in range(micros)) for _ in range(ranks))


def one_f_one_b(ranks: int, micros: int, chunks: int = 1) -> Plan:
    """Backward as early as possible; rank r keeps the activations of at most ranks - r micro-batches.

    Source: Narayanan et al., arXiv:2006.09503 (PipeDream-Flush).
    """
    return interleaved(ranks, micros, 1)


def interleaved(ranks: int, micros: int, chunks: int) -> Plan:
    """1F1B with several chunks a rank, which take turns of `ranks` micro-batches. The bubble is 1/chunks of 1F1B's, the messages
    are `chunks` times as many. Source: Narayanan et al., arXiv:2104.04473.
    """
    return tuple(_alternating(rank, ranks, micros, chunks) for rank in range(ranks))


def _alternating(rank: int, ranks: int, micros: int, chunks: int) -> tuple[Action, ...]:
    """As many forwards as can run before the first backward is ready, then a forward and a backward in turn."""
    total = micros * chunks
    if chunks == 1:
        turns = [(m, 0) for m in range(micros)]
        ahead = ranks - rank - 1
    else:
        turns = [(group + m, chunk) for group in range(0, micros, ranks) for chunk in range(chunks) for m in range(ranks)]
        ahead = 2 * (ranks - rank - 1) + (chunks - 1) * ranks
    ahead = min(total, ahead)
    forwards = [Action("F", micro, chunk) for micro, chunk in turns]
    backwards = [Action("B", micro, chunks - 1 - chunk) for micro, chunk in turns]
    steady = [action for pair in zip(forwards[ahead:], backwards, strict=False) for action in pair]
    return (*forwards[:ahead], *steady, *backwards[total - ahead :])


def zb_h1(ranks: int, micros: int, chunks: int = 1) -> Plan:
    """1F1B with the weights' gradients deferred to fill bubbles; no rank keeps more activations than 1F1B's first rank.

    Rank r runs ranks - r forwards. Then it runs in turn an input's gradient, the weights' gradient of the micro-batch r before
    that one, and a forward. Source: Qi et al., arXiv:2401.10241.
    """
    return tuple(_putting_off(rank, ranks, micros) for rank in range(ranks))


def _putting_off(rank: int, ranks: int, micros: int) -> tuple[Action, ...]:
    ahead = min(micros, ranks - rank)
    order = [Action("F", micro) for micro in range(ahead)]
    for micro in range(micros):
        order.append(Action("I", micro))
        order += [Action("W", micro - rank)] * (micro >= rank)
        order += [Action("F", micro + ahead)] * (micro + ahead < micros)
    return (*order, *(Action("W", micro) for micro in range(max(0, micros - rank), micros)))


def forwards(ranks: int, micros: int, chunks: int = 1) -> Plan:
    """Forwards only, for evaluation; any number of micro-batches."""
    return tuple(tuple(Action("F", m, chunk) for m in range(micros) for chunk in range(chunks)) for _ in range(ranks))


class Work(NamedTuple):
    """An action, and its start and end in seconds."""

    action: Action
    start: float
    end: float


def simulate(made: Plan, seconds: Mapping[str, float], wire_s: float = 0.0) -> list[list[Work]]:
    """Simulate a plan. seconds: of F, I and W in one stage (B takes I + W); wire_s: of a message between ranks.

    Returns: for each rank its actions with their times. Raises: RuntimeError if the plan has a deadlock.
    """
    ranks = len(made)
    cost = {"B": seconds["I"] + seconds["W"], **{kind: seconds[kind] for kind in "FIW"}}
    stages = ranks * (1 + max(action.chunk for order in made for action in order))
    done: dict[tuple[str, int, int], float] = {}
    at, clock, timelines = [0] * ranks, [0.0] * ranks, [[] for _ in range(ranks)]  # type: ignore[var-annotated]
    while any(at[rank] < len(made[rank]) for rank in range(ranks)):
        moved = False
        for rank in range(ranks):
            while at[rank] < len(made[rank]):
                action = made[rank][at[rank]]
                ready = _ready(action, rank, ranks, stages, done, wire_s)
                if ready is None:
                    break
                start = max(clock[rank], ready)
                clock[rank] = start + cost[action.kind]
                timelines[rank].append(Work(action, start, clock[rank]))
                done[
                    "F" if action.kind == "F" else "W" if action.kind == "W" else "I", _stage(action, rank, ranks), action.micro
                ] = clock[rank]
                at[rank] += 1
                moved = True
        if not moved:
            raise RuntimeError(f"the plan has a deadlock at {[order[i] for order, i in zip(made, at, strict=True)]}")
    return timelines


def _stage(action: Action, rank: int, ranks: int) -> int:
    return action.chunk * ranks + rank


def _ready(
    action: Action, rank: int, ranks: int, stages: int, done: dict[tuple[str, int, int], float], wire_s: float
) -> float | None:
    """Return the time when the inputs of an action are ready; None if that time is not known yet."""
    stage, micro = _stage(action, rank, ranks), action.micro
    if action.kind == "W":
        return done.get(("I", stage, micro))
    if action.kind == "F":
        before = done.get(("F", stage - 1, micro)) if stage else 0.0
        return before + wire_s * (stage > 0) if before is not None else None
    if stage == stages - 1:
        return done.get(("F", stage, micro))
    after = done.get(("I", stage + 1, micro))
    return after + wire_s if after is not None else None


def bubble(timelines: list[list[Work]]) -> float:
    """Return the share of all ranks' time, from the first start to the last end, in which ranks are idle."""
    begin = min(works[0].start for works in timelines)
    end = max(works[-1].end for works in timelines)
    busy = sum(work.end - work.start for works in timelines for work in works)
    return 1 - busy / (len(timelines) * (end - begin))


def bubble_in_theory(name: str, ranks: int, micros: int, seconds: Mapping[str, float], chunks: int = 1) -> float:
    """Return the bubble that the papers predict. seconds: of F, I and W in one stage (a rank has `chunks` stages).

    A rank is idle for (ranks - 1)(F + I + W) in GPipe and 1F1B; for 1/chunks of that in interleaved; in ZB-H1, with at least as
    many micro-batches as ranks, for (ranks - 1)(F + I - W), or 0 if W is longer.
    """
    f, i, w = (chunks * seconds[kind] for kind in "FIW")
    idle = (ranks - 1) * (max(0.0, f + i - w) if name == "zb-h1" else f + i + w) / (chunks if name == "interleaved" else 1)
    return idle / (idle + micros * (f + i + w))
