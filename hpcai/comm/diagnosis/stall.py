"""Limits of waits, and the reports of waits that are too long: first one line, at the limit a full report."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpcai import environment
from hpcai.comm import call
from hpcai.comm.diagnosis import findings, stacks, watch
from hpcai.errors import RankFailed, StallError, UsageError

TIMEOUT_S = 300.0
"""How long a rank waits for the others; $HPCAI_TIMEOUT_S overrides it, and `set_timeout` that."""

WARNING_S = 30.0
"""After a tenth of the limit, but at most after so long, a person is told who keeps the others waiting."""

PATIENCE_S = 10.0
"""How long a waiting rank leaves the report to a lower one that waits too."""

LOWER = 8
"""So many of the lower ranks are asked whether they wait too."""


class Waits:
    """How the waits of this process end.

    limit_s: their limit in seconds, once `set_timeout` was called.
    fail: whether a wait in vain is a failure that the ranks that wait outlive, instead of the job's end.
    """

    limit_s: float | None = None
    fail = False


waits = Waits()


def timeout_s() -> float:
    """The time limit of a wait in seconds."""
    return waits.limit_s or float(environment.value_of("TIMEOUT_S") or TIMEOUT_S)


def set_timeout(seconds: float) -> float:
    """Limit the waits of communicators that are made from now on; returns the limit. See Communicator.set_timeout."""
    number = isinstance(seconds, (int, float, np.integer, np.floating)) and not isinstance(seconds, bool)
    if not number or not environment.limit_fits(seconds):
        raise UsageError(f"set_timeout wants {environment.LIMIT_WORDS}, got {seconds!r}")
    waits.limit_s = float(seconds)
    return waits.limit_s


def outlive(failures: bool = True) -> None:
    """Whether from now on a wait in vain counts as a rank's failure, which the waiting ranks outlive."""
    waits.fail = failures


def error(wire: Any, what: str, missing: Callable[[], Sequence[int]]) -> StallError | RankFailed:
    """The error of a rank that waited in vain, for the thread that waited. Takes some seconds.

    If ranks outlive failures, the frozen ranks of this node are ended. All others, slow ones too, are to meet in the recovery,
    since no rank may go on while another that lives could still write into its memory.

    Otherwise the lowest rank that waits asks all ranks what they are doing. The other waiting ranks leave it to the lowest one to
    end the job, and ask only if it does not.

    missing: gives the ranks of the wire that did not come, for when no rank can be asked.
    """
    watched, family = watch.watch, _family()
    found = stacks.current(sys._getframe(1), family)
    if waits.fail:
        where = what if found is None else f"{found.text} at {found.place}"
        watch.end_frozen(where)
        return RankFailed(f"rank {wire.ranks[wire.rank]} waited {wire.timeout_s:g} s in vain in {where}")
    if watched is None or found is None or found.comm is None:
        return StallError(_headline(wire, what, found, [wire.ranks[rank] for rank in missing()]))
    stacks.give_up(found)
    late = _missing_in_memory(found.comm)
    if not _leads(watched, found.comm, late):
        time.sleep(PATIENCE_S)
    answers = watched.ask_twice(range(watched.size))
    if found.peer is not None:
        late = [wire.ranks[found.peer]]
    elif late is None:
        late = findings.late(answers, found.comm)
    if not any(watched.places[rank].port for rank in answers if rank != watched.rank):
        late = [wire.ranks[rank] for rank in missing()]  # nobody could be asked
    lines = [_headline(wire, what, found, late), *findings.report(answers, late, wire.timeout_s)]
    return StallError("\n".join(lines))


def _headline(wire: Any, what: str, found: stacks.Call | None, late: Sequence[int]) -> str:
    where = what if found is None else f"{found.text} at {found.place}"
    whom = f"{call.some(list(late))}, which did not come" if late else "a message, though all ranks wait"
    return f"rank {wire.ranks[wire.rank]} waited {wire.timeout_s:g} s in {where} for {whom}"


def _family() -> list[Any]:
    return [] if watch.watch is None else list(watch.watch.family)


def _missing_in_memory(comm: Any) -> list[int] | None:
    """The ranks that have not come, by their numbers in the world; None without shared memory."""
    missing = comm.missing()
    return None if missing is None else [comm.wire.ranks[rank] for rank in missing]


def _leads(watched: watch.Watch, comm: Any, late: Sequence[int] | None) -> bool:
    """Whether this rank is the lowest that waits in this communicator. If the LOWER lowest ranks are all late, no rank above them
    leads, so that not every rank asks them.
    """
    lower = sorted(rank for rank in comm.wire.ranks if rank < watched.rank)
    if late is not None:
        return all(rank in late for rank in lower)
    answers = watched.ask(lower[:LOWER])
    return len(findings.late(answers, comm)) == len(lower)


def watch_over(world: Any) -> None:
    """Have the ranks of this communicator watch each other, and warn when a rank keeps others waiting. Collective."""
    if world.size == 1:
        watch.stop()
        return
    try:
        watched = watch.start(world)
    except RankFailed:
        if waits.fail:  # if all live, and one was slow, the next collective would not fail by itself
            world.wire.revoke()
        return
    watched.look = _Warnings(watched).look


class _Warnings:
    """Prints one line for each stall, on the lowest rank that waits."""

    def __init__(self, watched: watch.Watch):
        self.watched, self.said = watched, set[tuple[Any, ...]]()

    def look(self) -> float:
        """Warn of waits that are too long; returns the seconds after which to look again."""
        limit_s = max(1.0, min(WARNING_S, timeout_s() / 10))
        for comm in list(self.watched.family):
            since = comm.waiting_since
            stalled = (comm.path, comm.calls)
            if since and time.monotonic() - since > limit_s and stalled not in self.said:
                self.said.add(stalled)
                # On a thread of its own: this one must answer those who ask at the same time.
                threading.Thread(target=self._warn, args=(comm,), daemon=True, name="hpcai warn").start()
        return min(5.0, limit_s / 4)

    def _warn(self, comm: Any) -> None:
        late = _missing_in_memory(comm)
        if not _leads(self.watched, comm, late):
            return
        answers = self.watched.ask(comm.wire.ranks if late is None else late)
        if late is None:
            late = [rank for rank in findings.late(answers, comm) if self.watched.places[rank].port]
        since, found = comm.waiting_since, self._call(comm)
        if not late or not since or found is None:
            return  # they came
        what = "; ".join(
            f"{call.some(ranks)}: {text}" for text, ranks in findings.grouped(answers, late, short=True)[: call.SHOWN]
        )
        waited_s = time.monotonic() - since
        print(
            f"hpcai: {call.some(late)} kept others waiting for {waited_s:.0f} s in {found.text} at {found.place}. {what}. "
            f"{'It counts as failed' if waits.fail else 'The job ends'} when a wait reaches {timeout_s():g} s.",
            file=sys.stderr,
            flush=True,
        )

    def _call(self, comm: Any) -> stacks.Call | None:
        family = _family()
        calls = [stacks.current(frame, family) for frame in sys._current_frames().values()]
        return next((found for found in calls if found is not None and found.comm is comm), None)
