"""What happens to ranks of a real run: some are killed, or frozen and perhaps thawed later. See torture.py."""

import contextlib
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

from hpcai.comm.launch import host
from tests.command import children

NEW_S = 5.0


class Strike(NamedTuple):
    """The time of the last blow to a rank that trained, how many of those there were, and how many to ranks that waited."""

    at: float
    struck: int
    beside: int
    victims: tuple[tuple[int, str], ...] = ()
    """Of those that were frozen the process's number and its start."""
    thawed: float | None = None
    """When those are thawed, by time.monotonic()."""


def chosen(process, rng, count, training, spares, first=False):
    """So many of the `training` ranks, and at times a spare one; some rank that trains is left. Returns them, and those of them
    that train. first: the first is among them. Ranks that are frozen already do not count.
    """
    able = [pid for pid in children(process) if state((pid, host.started(pid))) not in ("T", "t")]
    ranks = sorted(able, key=rank_of) if spares else sorted(able)
    ranks, waiting = ranks[:training], ranks[training:]
    victims = rng.sample(ranks, min(count, len(ranks) - 1)) if ranks else []
    if first and victims and ranks[0] not in victims:
        victims[0] = ranks[0]
    if waiting and rng.random() < 0.2:
        victims.insert(rng.randrange(len(victims) + 1), rng.choice(waiting))
    left = [pid for pid in ranks if pid not in victims]
    if victims and not spares and all(is_new(pid) for pid in left):  # and may not be a rank yet: then nobody would be left
        victims[victims.index(min(victims))] = left[0]
    return victims, [pid for pid in victims if pid in ranks]


def kill(victims, train, rng):
    """SIGKILL them, at once or a moment apart."""
    struck, beside, at = 0, 0, time.time()
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):  # the run has ended
            os.kill(victim, signal.SIGKILL)
            struck, beside = struck + (victim in train), beside + (victim not in train)
            at = time.time() if victim in train else at
        time.sleep(rng.choice([0, rng.uniform(0, 0.05)]))
    return Strike(at, struck, beside)


def freeze(victims, train, rng, thaw_s):
    """SIGSTOP them, at once or a moment apart, and SIGCONT them after so many seconds, if that is not None."""
    struck, at = [], time.time()
    for victim in victims:
        began = host.started(victim)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGSTOP)
            struck.append((victim, began))
            at = time.time() if victim in train else at
        time.sleep(rng.choice([0, rng.uniform(0, 0.05)]))
    thawed = None if thaw_s is None else time.monotonic() + thaw_s
    if thaw_s is not None:
        timer = threading.Timer(thaw_s, thaw, (struck,))
        timer.daemon = True
        timer.start()
    of_those = sum(victim in train for victim, _ in struck)
    return Strike(at, of_those, len(struck) - of_those, tuple(struck), thawed)


def thaw(victims):
    for pid, began in victims:
        with contextlib.suppress(ProcessLookupError):
            if host.started(pid) == began:
                os.kill(pid, signal.SIGCONT)


def state(victim):
    """The kernel's letter for a process; empty if it has ended."""
    pid, began = victim
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return fields[0] if fields[19] == began and fields[0] not in "ZX" else ""
    return ""


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
