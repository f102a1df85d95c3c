"""What the threads of this process are doing, read from their Python frames.

A collective under way is on the stack of its thread, with its communicator and its arguments; so the calls themselves record
nothing, which costs nothing.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple, TypeVar

import hpcai
from hpcai import comm as room
from hpcai.comm import call

T = TypeVar("T")

COMM = os.path.abspath(room.__path__[0]) + os.sep
PACKAGE = os.path.dirname(os.path.abspath(hpcai.__path__[0])) + os.sep
LIBRARY = os.path.dirname(os.__file__) + os.sep

_methods, _waits = set[CodeType](), set[CodeType]()
"""The code of communicators' methods, and of methods that wait for one message, by which a stack's frames are recognised."""

INNERMOST = 8
"""How many frames of a stack are reported, from the innermost."""

OWN = ("hpcai watch", "hpcai ask", "hpcai warn")
"""The first words of the names of threads that watch, which are not reported."""

VAIN_S = 20.0
"""Seconds for which a rank reports that it has waited in vain: its end may take that long."""

THREADS = 4
"""How many threads are reported; threads in collectives come first."""


def communicator(kind: type[T]) -> type[T]:
    """Decorates a class of communicators, whose methods are then recognised on stacks."""
    functions = [inspect.unwrap(method) for method in vars(kind).values() if isinstance(method, FunctionType)]
    _methods.update(function.__code__ for function in functions)
    return kind


def waits(method: Callable[..., T]) -> Callable[..., T]:
    """Decorates a method that waits for a message, which is then recognised on stacks."""
    _waits.add(method.__code__)
    return method


class Call(NamedTuple):
    """A collective or message that a thread is in: in words and with its place, as the program called it; the communicator and
    wire on which it is now (a collective may be made of others); the other rank if it is a message.
    """

    text: str
    place: str
    comm: Any
    wire: Any
    peer: int | None = None


def current(frame: FrameType | None, family: list[Any]) -> Call | None:
    """The call on the stack whose innermost frame is `frame`, or None. family: communicators that may own a message's wire."""
    outer, peer, message = None, None, ""
    comm: Any = None
    wire: Any = None
    while frame is not None and frame.f_code.co_filename.startswith(COMM):
        code = frame.f_code
        if code in _methods:
            comm = comm or frame.f_locals["self"]
            if code.co_name in call.KINDS or code.co_name == "allgather_each":
                outer = frame
        elif code in _waits and comm is None:
            request = frame.f_locals["self"]
            wire, message = request.wire, request.what
            peer = request.key[3] if request.key else None
        frame = frame.f_back
    if outer is not None:
        return Call(_words(outer, comm), place(frame), comm, comm.wire)
    if wire is None:
        return None
    comm = next((one for one in family if one.wire is wire), None)
    side = "" if peer is None else f" {'to' if 'send' in message else 'from'} rank {wire.ranks[peer]}"
    return Call(message + side, place(frame), comm, wire, peer)


def _words(frame: FrameType, inner: Any) -> str:
    """The call of this frame of a communicator's method, in words; `inner` is the communicator on which it is now."""
    values, kind = frame.f_locals, frame.f_code.co_name.removesuffix("_each")
    comm, x = values["self"], values.get("x")
    text = call.describe(kind, x if hasattr(x, "dtype") else None, values.get("op", ""), values.get("root", 0), comm.calls)
    if inner is not comm and kind not in ("split", "split_by_node"):
        text += f", now among {call.some(list(inner.wire.ranks))} of them"
    return text


def place(frame: FrameType | None) -> str:
    """The place of a frame: "file:line function"; empty without one."""
    return "" if frame is None else f"{_short(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"


def _short(file: str) -> str:
    """A file's path relative to the package's parent, the working directory, or where Python or other packages are installed."""
    here = os.getcwd() + os.sep
    for start in (PACKAGE, here, LIBRARY):
        file = file.removeprefix(start)
    return file.split("site-packages" + os.sep)[-1]


gave_up: dict[int, tuple[float, dict[str, Any]]] = {}
"""For each thread (by its number) that has waited in vain: when it gave up, and its call."""


def give_up(found: Call) -> None:
    """Record that this thread stops waiting in `found` and will end its program; for VAIN_S it is still reported as waiting."""
    gave_up[threading.get_ident()] = (time.monotonic(), _plain(found, found.wire.timeout_s))


def tell(family: list[Any]) -> dict[str, Any]:
    """This process as JSON values: its calls under way, its stacks (innermost frame first), and the number of calls made; without
    the watch's threads.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    calls, stacks = [], []
    for ident, frame in sys._current_frames().items():
        name = names.get(ident, "a thread")
        if name.startswith(OWN):
            continue
        found = current(frame, family)
        since, vain = gave_up.get(ident, (0.0, None))
        if vain is not None and time.monotonic() - since < VAIN_S:
            calls.append(vain)
        elif found is not None:
            calls.append(_plain(found, _waited_s(found)))
        stacks.append((found is None, name != "MainThread", name, lines(frame)))
    return {
        "calls": calls,
        "stacks": [[name, lines] for _, _, name, lines in sorted(stacks)[:THREADS]],
        "made": sum(comm.calls for comm in family),
    }


def _plain(found: Call, waited_s: float) -> dict[str, Any]:
    """A call as JSON values, for an answer."""
    path = None if found.comm is None else list(found.comm.path)
    return {"text": found.text, "place": found.place, "path": path, "ranks": list(found.wire.ranks[:64]), "waited_s": waited_s}


def _waited_s(found: Call) -> float:
    """Seconds since this call began to wait for others; 0 while it does not wait."""
    since = found.wire.waiting_since if found.comm is None else found.comm.waiting_since
    return time.monotonic() - since if since else 0.0


def lines(frame: FrameType | None) -> list[str]:
    """The places of a stack's innermost frames, innermost first, INNERMOST at most."""
    found: list[str] = []
    while frame is not None and len(found) < INNERMOST:
        if "<frozen " not in frame.f_code.co_filename:
            found.append(place(frame)[:200])
        frame = frame.f_back
    return found
