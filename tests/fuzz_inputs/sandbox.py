"""Attempts in a process of their own, with limits of time and memory, and with an eye on what they write."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from hpcai.errors import HpcaiError
from tests.fuzz_inputs.kind import Kind

LIMIT_S = 10.0
MEMORY_BYTES = 512 * 2**20
ADDRESSES_BYTES = 8 * 2**30


class Finding(NamedTuple):
    """What came of one input. fault: what is wrong with hpcai's answer, "" if nothing is."""

    kind: str
    number: int
    what: str
    outcome: str
    fault: str


def findings(name: str, kind: Kind, seed: int, numbers: range, folder: Path) -> Iterator[Finding]:
    """The findings for inputs of these numbers. A process that hangs, dies or grows is replaced."""
    waiting = list(numbers)
    while waiting:
        ours, theirs = multiprocessing.Pipe()
        worker = multiprocessing.get_context("fork").Process(target=_work, args=(theirs, name, kind, seed, waiting, folder))
        worker.start()
        theirs.close()
        try:
            for found in _heard(ours, name, waiting):
                waiting = [number for number in waiting if number > found.number]
                yield found
        finally:
            worker.kill()
            worker.join()


def _heard(pipe: Connection, name: str, waiting: list[int]) -> Iterator[Finding]:
    """Findings until the process has done all, or one that says how it ended."""
    number, what = waiting[0], "not yet made"
    while True:
        if not pipe.poll(LIMIT_S):
            yield Finding(name, number, what, "time", f"not done after {LIMIT_S:g} s")
            return
        try:
            message = pipe.recv()
        except EOFError:
            yield Finding(name, number, what, "end", "the process died")
            return
        if isinstance(message, Finding):
            yield message
            if message.number == waiting[-1] or message.outcome == "memory":
                return
        else:
            number, what = message


def _work(pipe: Connection, name: str, kind: Kind, seed: int, numbers: list[int], folder: Path) -> None:
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES_BYTES, ADDRESSES_BYTES))
    written: list[str] = []
    sys.addaudithook(lambda event, arguments: written.extend(_written(event, arguments)))
    begun_bytes = _most_bytes()
    for number in numbers:
        place = folder / f"{name}-{number}"
        place.mkdir()
        os.chdir(place)
        pipe.send((number, "being made"))
        what = kind.make(random.Random(f"{seed} {name} {number}"), place)
        pipe.send((number, what))
        written.clear()
        outcome, value = _attempted(kind, place)
        outside = [path for path in written if not Path(os.path.abspath(path)).is_relative_to(place) and path != os.devnull]
        grown = _most_bytes() - begun_bytes
        fault = "" if outcome in ("accepted", "refused") else f"{outcome}: {value}"
        if outcome == "refused" and ("\n" in value or len(value) > 2000):
            fault = f"a message of {len(value)} characters and {value.count(chr(10)) + 1} lines: {value[:200]!r}"
        if outside:
            fault = f"it wrote {outside[0]}"
        if grown > MEMORY_BYTES:
            outcome, fault = "memory", f"it grew by {grown >> 20} MiB"
        if outcome == "accepted" and not fault:
            fault = _wrong(kind, place, value)
        os.chdir(folder)
        shutil.rmtree(place, ignore_errors=True)
        pipe.send(Finding(name, number, what, outcome, fault))


def _attempted(kind: Kind, place: Path) -> tuple[str, Any]:
    try:
        return "accepted", kind.attempt(place)
    except (HpcaiError, OSError) as error:  # what the command ends by with one line
        return "refused", str(error)
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else "?"
        return "traceback", f"{type(error).__name__} at {where}: {error!s:.200}"


def _wrong(kind: Kind, place: Path, value: Any) -> str:
    """How an accepted input's value differs from what is right."""
    try:
        truth = kind.truth(place)
    except Exception as error:
        return f"it is accepted, but read otherwise it is refused: {type(error).__name__}: {error!s:.200}"
    return "" if truth is None or truth == value else f"it gives {value!r:.200}, where {truth!r:.200} is right"


def _most_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _written(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """The paths that an event of Python's audit changes."""
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path, mode, flags = arguments
        writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if mode is None else set(mode) & set("wax+")
        makes_none = os.path.isdir(path)  # a trial whether a folder can be written, by a file without a name
        return [os.fsdecode(path)] if writes and not makes_none else []
    if event in ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "os.symlink", "os.link", "os.rename"):
        return [os.fsdecode(one) for one in arguments[:2] if isinstance(one, (str, bytes, os.PathLike))]
    return []
