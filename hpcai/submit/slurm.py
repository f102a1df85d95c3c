"""Calls of Slurm's commands: to test and submit a script, and to follow a job's log until the job ends."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hpcai.errors import HpcaiError, UsageError

POLL_S = 1.0
"""Seconds between two reads of a followed log; Slurm is asked at every third read."""

GONE_AFTER = 5
"""After how many unanswered questions in a row a job is no longer followed."""

FAILED = {"CANCELLED": 143, "TIMEOUT": 124}
"""Exit codes for jobs that ended without one of their own; others are 1."""

READ_BYTES = 1 << 20
"""A followed log is read in pieces of this size."""

GOING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING", "STOPPED", "SIGNALING"}


def require() -> None:
    """Raise UsageError if there is no sbatch command on this machine."""
    if shutil.which("sbatch") is None:
        raise UsageError("there is no sbatch on this machine; submit on a login node, or see the script by --dry-run")


def trial(script: str) -> None:
    """Test a script by `sbatch --test-only`. Raises: UsageError with Slurm's message if Slurm would reject the script."""
    done = _sbatch("--test-only", given=script)
    if done.returncode:
        raise UsageError(f"Slurm refuses the job: {_words(done.stderr)}")


def submit(path: Path) -> str:
    """Queue the script; returns the job's number. Raises: HpcaiError if Slurm rejects it."""
    done = _sbatch("--parsable", str(path.absolute()))
    if done.returncode:
        raise HpcaiError(f"Slurm refused {path}: {_words(done.stderr)}")
    found = re.search(r"^([0-9]+)(;.*)?$", done.stdout.strip().rpartition("\n")[2])
    if not found:
        raise HpcaiError(f"sbatch took {path} but did not say the job's number: {_words(done.stdout)}; squeue --me lists jobs")
    return found[1]


def _sbatch(*words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sbatch", *words], input=given, capture_output=True, encoding="utf-8", errors="replace", check=False)


def _words(stderr: str) -> str:
    lines = [re.sub(r"^(sbatch: )?(error: )?", "", line).strip() for line in stderr.splitlines()]
    return "; ".join(line for line in lines if line) or "without saying why"


def follow(job: str, logs: Sequence[Path]) -> int:
    """Print what is added to the logs until all tasks of the job have ended, through requeues. Returns the job's exit code."""
    outcomes: dict[str, tuple[str, str]] = {}
    read, unanswered, rounds = dict.fromkeys(logs, 0), 0, 0
    while True:
        for i, log in enumerate(logs):
            read[log] = _print_new(log, read[log], f"[{i}] " if len(logs) > 1 else "")
        if rounds % 3 == 0:
            states = _states(job)
            unanswered = 0 if states else unanswered + 1
            outcomes = states or outcomes
            ended = bool(states) and all(state not in GOING for state, _ in states.values())
            if (ended and len(states) >= len(logs)) or unanswered >= GONE_AFTER:
                break
        rounds += 1
        time.sleep(POLL_S)
    for i, log in enumerate(logs):
        _print_new(log, read[log], f"[{i}] " if len(logs) > 1 else "")
    said = ", ".join(sorted({state for state, _ in outcomes.values()})) or "not known to Slurm any more"
    print(f"hpcai.submit: job {job}: {said}", file=sys.stderr, flush=True)
    return max((_code(*outcome) for outcome in outcomes.values()), default=1)


def _print_new(log: Path, start: int, mark: str) -> int:
    """Print the log's whole lines from byte `start`; returns where they end."""
    while new := _read(log, start):
        whole = new[: new.rfind(b"\n") + 1] or (new if len(new) == READ_BYTES else b"")
        for line in whole.decode("utf-8", "replace").removesuffix("\n").split("\n") if whole else ():
            print(f"{mark}{line}", flush=True)
        start += len(whole)
        if len(new) < READ_BYTES:
            break
    return start


def _read(log: Path, start: int) -> bytes:
    """A piece of the log from byte `start`, of READ_BYTES at most; empty if it is no regular file, which may never end."""
    try:
        handle = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return b""
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return b""
        file.seek(start)
        return file.read(READ_BYTES)


def _states(job: str) -> dict[str, tuple[str, str]]:
    """State and exit code of each task of a job, by the task's number; empty if Slurm does not answer."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "job", job], capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return _parsed(done.stdout)


def _parsed(said: str) -> dict[str, tuple[str, str]]:
    r"""State and exit code by task, from the output of `scontrol show job`. Names, comments and paths may hold any text,
    but they begin no line.

    >>> _parsed("JobId=7 JobName=x JobState=FAILED\n   JobState=RUNNING Reason=None\n   Requeue=1 Restarts=0 ExitCode=0:0\n")
    {'7': ('RUNNING', '0:0')}
    """
    found = {}
    for record in re.split(r"^(?=JobId=)", said, flags=re.MULTILINE):
        number = re.match(r"JobId=(\d+)", record)
        state = re.search(r"^ +JobState=(\w+)", record, re.MULTILINE)
        code = re.search(r"^ +Requeue=\d+ (?:\w+=\d+ )*ExitCode=(\d+:\d+)", record, re.MULTILINE)
        if number and state and code:
            found[number[1]] = state[1], code[1]
    return found


def _code(state: str, exit_code: str) -> int:
    """The exit code, as of a shell, for a job's state and Slurm's CODE:SIGNAL.

    >>> _code("COMPLETED", "0:0"), _code("FAILED", "85:0"), _code("FAILED", "0:9"), _code("NODE_FAIL", "0:0")
    (0, 85, 137, 1)
    """
    code, _, number = exit_code.partition(":")
    if state == "COMPLETED":
        return 0
    return int(code) or (128 + int(number) if number.isdigit() and int(number) else FAILED.get(state, 1))
