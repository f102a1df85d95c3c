"""Time limits of what MPI itself does not limit, and the end of a process that exceeds one."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

from hpcai.comm.diagnosis import stacks, stall, watch
from hpcai.comm.launch import host
from hpcai.comm.wires import library
from hpcai.errors import RanksLost
from hpcai.ops import native

LAST_RESORT_S = 10
"""How long after an abort the launcher may take to end the job."""

SHOWN_FRAMES = 4
"""Of the stack of a rank that ends because others do not come."""

START_S = 15.0
"""The least that ranks wait for each other's start, since programs come from the file system at different times."""


@contextlib.contextmanager
def deadline(limit_s: float, code: int, words: str = "") -> Iterator[None]:
    """End this process, with this exit code and `words` on stderr, if the body takes longer than `limit_s`. Unlike `limited` it
    works also while no Python thread can run, as when MPI starts.
    """
    if (kernels := native.kernels()) is None:
        faulthandler.dump_traceback_later(limit_s, exit=True)
        call_off = faulthandler.cancel_dump_traceback_later
    else:
        call_off = kernels.Deadline(limit_s, code, words).call_off
    try:
        yield
    finally:
        call_off()


@contextlib.contextmanager
def limited(what: str, code: int, limit_s: float | None = None) -> Iterator[None]:
    """Limit the time of MPI calls that wait for all ranks that live, some of which may be frozen. After `limit_s` (default: the
    limit of waits) the stopped ranks of this node are ended. After as long again, at least START_S since others may be loading
    programs, this process ends with this exit code. `what` names the body in messages.
    """
    over, limit_s = threading.Event(), stall.timeout_s() if limit_s is None else limit_s
    whole_s, waiting = limit_s + max(limit_s, START_S), threading.get_ident()

    def look() -> None:
        if over.wait(limit_s):
            return
        watch.end_frozen(what)
        if not over.wait(whole_s - limit_s):
            where = stacks.lines(sys._current_frames().get(waiting))[:SHOWN_FRAMES]
            reason = f"a rank may be frozen, or MPI wait for one that failed; here it came to {' called by '.join(where)}"
            advice = "; start again with --resume auto" if code == RanksLost.exit_code else ""
            sys.stderr.write(f"StallError: {what} did not end within {whole_s:g} s; {reason}{advice}\n")
            sys.stderr.flush()
            last_resort()
            os._exit(code)

    threading.Thread(target=look, daemon=True, name="hpcai limit").start()
    try:
        yield
    finally:
        over.set()


def quit(code: int = 0) -> int:
    """End this process with this exit code, without MPI_Finalize."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def last_resort() -> None:
    """Start a process that kills Open MPI's launcher if the launcher does not end the job: it waits for ever for a node that it
    cannot reach any more. The launcher's folder is removed too, since the next launcher with the same process number fails on it.
    """
    parent, name = os.getppid(), host.name(os.getppid())
    if not name.startswith(("prterun", "prted", "mpirun", "mpiexec")) or "Open MPI" not in library.name():
        return
    script = (
        'alive() { [ "$(cut -d" " -f22 "/proc/$1/stat" 2>/dev/null)" = "$2" ]; }; '
        'for i in $(seq "$3"); do alive "$1" "$2" || exit; sleep 0.2; done; alive "$1" "$2" && kill -KILL "$1" && sleep 0.2; '
        'case "$4" in */ompi."$1") rm -rf "$4"; esac'
    )
    told = [str(parent), host.started(parent), str(5 * LAST_RESORT_S), os.environ.get("PMIX_SERVER_TMPDIR", "")]
    quiet = subprocess.DEVNULL
    with contextlib.suppress(OSError):
        subprocess.Popen(["sh", "-c", script, "sh", *told], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
