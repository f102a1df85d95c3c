"""The answers of ranks about what they are doing, in words, which distinguish slow ranks from dead ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hpcai.comm import call
from hpcai.comm.diagnosis.watch import Answer

GROUPS = 16
"""How many different answers are shown; ranks with the same answer are shown together."""


def late(answers: Mapping[int, Answer], comm: Any) -> list[int]:
    """The ranks of this communicator, by their numbers in the world, that were asked and do not wait in it."""
    path, members = list(comm.path), set(comm.wire.ranks)
    return [
        rank
        for rank, answer in sorted(answers.items())
        if rank in members
        and (answer.told is None or not any(one["path"] == path and one["waited_s"] for one in answer.told["calls"]))
    ]


def report(answers: Mapping[int, Answer], late: Iterable[int], timeout_s: float) -> list[str]:
    """Lines that say what each rank does, late ranks first, and what a person can do about it."""
    late = list(late)
    groups = grouped(answers, late) + grouped(answers, [rank for rank in sorted(answers) if rank not in late])
    lines = [f"{call.some(ranks)}: {text}" for text, ranks in groups[:GROUPS]]
    if len(groups) > GROUPS:
        lines.append(f"and {len(groups) - GROUPS} other answers, not shown")
    alive = [rank for rank in late if answers[rank].told is not None]
    if alive:
        lines.append(
            f"{call.some(alive)} answered, so {'they are' if len(alive) > 1 else 'it is'} alive; if only slow, wait longer than "
            f"{timeout_s:g} s: --stall-timeout of hpcai.train, or $HPCAI_TIMEOUT_S"
        )
    return lines


def grouped(answers: Mapping[int, Answer], ranks: Iterable[int], short: bool = False) -> list[tuple[str, list[int]]]:
    """(text, ranks) for each different answer. Ranks that wait in the same call share a text, with the longest of their waits."""
    groups: dict[str, tuple[list[int], float]] = {}
    for rank in ranks:
        text, waited_s = _said(answers[rank], short)
        others, longest_s = groups.get(text, ([], 0.0))
        groups[text] = ([*others, rank], max(waited_s, longest_s))
    return [(text.replace("{waited}", f"{waited_s:.1f} s"), ranks) for text, (ranks, waited_s) in groups.items()]


def _said(answer: Answer, short: bool) -> tuple[str, float]:
    """One rank's answer in words, with {waited} in place of the seconds that it has waited, and the seconds."""
    told = answer.told
    if told is None:
        return _silent(answer), 0.0
    waits = [one for one in told["calls"] if one["waited_s"]]
    stack = told["stacks"][0][1] if told["stacks"] else []
    if waits:
        one = waits[0]
        return f"waiting {{waited}} in {one['text']} of {_members(one['ranks'])} at {one['place']}", one["waited_s"]
    if short and told["calls"]:
        one = told["calls"][0]
        return f"alive, in {one['text']} of {_members(one['ranks'])} at {one['place']}", 0.0
    if short:
        return f"alive and at work at {stack[0] if stack else 'an unknown place'}", 0.0
    text = f"alive and at work (collectives called so far: {told['made']:,})"
    for name, lines in told["stacks"]:
        text += f"\n  in {name}: " + "\n    called by ".join(lines)
    return text, 0.0


def _members(ranks: list[int]) -> str:
    """The ranks of a communicator in words; consecutive numbers as a range."""
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return call.some(ranks)


def _silent(answer: Answer) -> str:
    """The probable state, in words, of a rank that gave no answer."""
    there, state = answer.place, answer.state
    who = f"process {there.pid} on {there.host}" if there is not None else "its process"
    if state in ("T", "t"):
        return f"frozen: {who} is stopped (state {state}, as by SIGSTOP)"
    if state in ("gone", "Z", "X"):
        return f"dead: {who} has ended"
    if state == "D":
        return f"frozen in I/O: {who} waits for a device (state D)"
    if there is not None and not there.port:
        return f"silent: it could open no socket by which to answer{f'; {who} is in state {state}' if state else ''}"
    if state:
        return f"silent: {who} lives (state {state}) but does not answer; native code may keep Python's lock"
    if answer.reached:
        return f"frozen or overloaded: {there.host if there else 'its host'} takes calls, but {who} does not answer"
    return f"dead or unreachable: no connection to {who}"
