"""The watch: a thread in every process that answers what this rank is doing, so that one which waits in vain can say why.

Answers go over TCP beside MPI, whose calls may be just what hangs. A question is 32 bytes, a digest of the answering side's
challenge under a key that rank 0 draws and MPI distributes; who does not know the key gets no answer. An answer is JSON of
limited length. Every step has a time limit, so a report takes seconds also when ranks are dead. Between questions the thread
sleeps; it wakes every few seconds to see whether this rank has waited so long that a person should be warned.
"""

from __future__ import annotations

import atexit
import contextlib
import hmac
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from hpcai.comm.diagnosis import stacks
from hpcai.comm.launch.host import Process, here, process_state

CONNECT_S, ANSWER_S, QUESTION_S, REPORT_S = 0.5, 1.0, 0.3, 3.0
"""Limits of connecting to an address, of an answer, of a question that has begun, and of asking all ranks."""

AGAIN_S = 4.0
"""Limit of asking once more those that live and gave no answer: on a busy machine a second is short."""

ASKERS, BACKLOG = 32, 128
"""Ranks that are asked at the same time, and questions that may wait for this one."""

ANSWER_BYTES, DIGEST_BYTES = 1 << 16, 32
STOPPED = ("T", "t")
"""The kernel's letters for a process that was stopped, as by SIGSTOP or a debugger."""

LOOK_AGAIN_S, ENDING_S = 1.0, 2.0
"""After how long frozen ranks are looked at once more, and how long the end of those that are killed is waited for."""


class Answer(NamedTuple):
    """The outcome of asking a rank: its answer or None; whether its host accepted the connection; its process's state if known,
    and its process.
    """

    told: dict[str, Any] | None
    reached: bool = False
    state: str = ""
    place: Process | None = None


class Watch:
    """One process among those that watch each other."""

    def __init__(self, world: Any):
        """Collective over `world`, a communicator."""
        self.rank, self.size, self.closed = world.rank, world.size, threading.Event()
        self.family = world.family  # weak: a thread that outlives the program must not keep communicators
        self.listener = _listener()
        self.pid = os.getpid()
        mine = (here(self.listener.getsockname()[1] if self.listener else 0), secrets.token_bytes(DIGEST_BYTES))
        known = world.wire.exchange(mine)
        self.places: list[Process] = [place for place, _ in known]
        self.key: bytes = known[0][1]
        self.look: Callable[[], float] = lambda: 0.2
        self.thread = threading.Thread(target=self._serve, daemon=True, name="hpcai watch")
        self.thread.start()

    def close(self) -> None:
        """Stop answering, and end the thread, which would keep objects alive beyond the interpreter's end."""
        self.closed.set()
        if self.pid == os.getpid():
            if self.listener is not None:
                with contextlib.suppress(OSError):
                    self.listener.shutdown(socket.SHUT_RDWR)  # ends its wait
            self.thread.join(1.0)
        if self.listener is not None:
            self.listener.close()

    def _serve(self) -> None:
        """Answer questions, and check the waits of this rank by `look`, which returns the seconds after which to check again."""
        while not self.closed.is_set():
            try:
                pause_s = self.look()
            except Exception:  # a rank that is being taken down
                pause_s = 5.0
            if self.listener is None:
                self.closed.wait(pause_s)
                continue
            end = time.monotonic() + pause_s
            while not self.closed.is_set() and (left := end - time.monotonic()) > 0:
                try:
                    self.listener.settimeout(left)
                    peer, _ = self.listener.accept()
                except TimeoutError:
                    break
                except OSError:  # closed, or no more descriptors
                    self.closed.wait(0.1)
                    continue
                with peer, contextlib.suppress(Exception):
                    self._answer(peer)

    def _answer(self, peer: socket.socket) -> None:
        peer.settimeout(QUESTION_S)
        challenge = secrets.token_bytes(DIGEST_BYTES)
        peer.sendall(challenge)
        if hmac.compare_digest(_receive(peer, DIGEST_BYTES, ANSWER_S), _digest(self.key, challenge)):
            told = {"rank": self.rank, **stacks.tell(list(self.family))}
            peer.sendall(json.dumps(told).encode()[:ANSWER_BYTES])

    def ask(self, ranks: Iterable[int], limit_s: float = REPORT_S) -> dict[int, Answer]:
        """Ask these ranks of the world, at the same time; within `limit_s` every one has its answer, if an empty one."""
        ranks = list(ranks)
        answers = {rank: Answer(None, place=self.places[rank]) for rank in ranks}
        with contextlib.suppress(RuntimeError):  # the interpreter is ending
            pool = ThreadPoolExecutor(min(ASKERS, max(1, len(ranks))), thread_name_prefix="hpcai ask")
            asked = {pool.submit(self._ask, rank, limit_s / 3): rank for rank in ranks}
            for future in wait(asked, timeout=limit_s).done:
                answers[asked[future]] = future.result()
            pool.shutdown(wait=False, cancel_futures=True)
        return answers

    def ask_twice(self, ranks: Iterable[int]) -> dict[int, Answer]:
        """`ask`, and once more, for AGAIN_S, those that live and gave no answer."""
        answers = self.ask(ranks)
        silent = [rank for rank, answer in answers.items() if self._lives(answer)]
        return answers | self.ask(silent, AGAIN_S) if silent else answers

    def _lives(self, answer: Answer) -> bool:
        """Return whether a rank that gave no answer may still give one."""
        if answer.told is not None or answer.place is None or not answer.place.port:
            return False
        return answer.reached or process_state(answer.place) not in ("", *STOPPED, "D", "X", "Z", "gone")

    def _ask(self, rank: int, answer_s: float = ANSWER_S) -> Answer:
        there, end, reached = self.places[rank], time.monotonic() + 2 * answer_s, False
        if process_state(there) in (*STOPPED, "Z", "gone"):
            return Answer(None, False, process_state(there), there)
        if rank == self.rank:
            return Answer({"rank": rank, **stacks.tell(list(self.family))}, True, "", there)
        for address in there.seen_from(self.places[self.rank]) if there.port else ():
            if reached or time.monotonic() > end:
                break
            with contextlib.suppress(OSError, ValueError):
                with socket.create_connection((address, there.port), timeout=CONNECT_S) as peer:
                    peer.settimeout(answer_s)
                    reached = True  # and is not asked again if it lets the time pass
                    challenge = _receive(peer, DIGEST_BYTES, answer_s)
                    reached = False
                    peer.sendall(_digest(self.key, challenge))
                    told = json.loads(_receive(peer, ANSWER_BYTES, answer_s, whole=False))
                if told["rank"] == rank:
                    return Answer(told, True, "", there)
        return Answer(None, reached, process_state(there), there)


def _listener() -> socket.socket | None:
    """A socket that listens on a port of the system's choice; None if that is forbidden."""
    try:
        return socket.create_server(("", 0), backlog=BACKLOG)
    except OSError:
        return None


def _digest(key: bytes, challenge: bytes) -> bytes:
    return hmac.digest(key, challenge, "sha256")


def _receive(peer: socket.socket, count: int, limit_s: float, whole: bool = True) -> bytes:
    """`count` bytes, or what comes until the other side ends, at most so many and all within `limit_s`. Raises OSError."""
    end, got = time.monotonic() + limit_s, b""
    while len(got) < count:
        piece = peer.recv(min(4096, count - len(got)))
        if not piece and whole:
            raise ConnectionError("the other side ended")
        if not piece or time.monotonic() > end:
            break
        got += piece
    return got


watch: Watch | None = None
"""This process's watch, once `start` was called."""


beside: list[Process] = []
"""Processes that are not watched, but for which the others wait when they recover."""


def frozen() -> list[Process]:
    """The processes of `watch` and `beside` on this node that are stopped."""
    return [place for place in (*([] if watch is None else watch.places), *beside) if process_state(place) in STOPPED]


def end_frozen(what: str) -> list[Process]:
    """Kill the stopped processes of this node, which keep others waiting in `what`, and wait until they have ended; returns them.

    They are checked twice: if a whole job was stopped, the first process that goes on sees the others still stopped for a moment.
    """
    if not (found := frozen()):
        return []
    time.sleep(LOOK_AGAIN_S)
    ended = list[Process]()
    for place in found:
        if process_state(place) not in STOPPED:
            continue
        ended.append(place)
        sys.stderr.write(f"hpcai: process {place.pid} is frozen and keeps others waiting in {what}; it is ended\n")
        with contextlib.suppress(ProcessLookupError):  # another rank ended it
            os.kill(place.pid, signal.SIGKILL)
    end = time.monotonic() + ENDING_S
    while any(process_state(place) in STOPPED for place in ended) and time.monotonic() < end:
        time.sleep(0.001)
    return ended


def start(world: Any) -> Watch:
    """Watch the ranks of this communicator, instead of any watched before; returns the watch. Collective."""
    global watch
    stop()
    watch = Watch(world)
    atexit.register(watch.close)
    return watch


def stop() -> None:
    """Stop watching and answering."""
    global watch
    if watch is not None:
        atexit.unregister(watch.close)
        watch.close()
        watch = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=stop)  # a forked child is no rank: it must not keep the port
