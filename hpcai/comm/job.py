"""A job under MPI: its start, the refusal of ranks that do not see each other, and its end, also when a rank fails."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import traceback
from typing import Any

from hpcai import environment, ops
from hpcai.comm import limits
from hpcai.comm.communicator import Communicator
from hpcai.comm.diagnosis import stall
from hpcai.comm.launch import cores
from hpcai.comm.launch.launcher import launch
from hpcai.comm.wires import library, mpi, ulfm
from hpcai.errors import HpcaiError, LaunchError, RankFailed, RanksLost, StallError, one_line

JOINING_S = 30.0
"""How long the start of new ranks may take, and again: where one fails meanwhile Open MPI may wait, and print, for ever."""

_starting = threading.RLock()


class _Job:
    """What this process knows of its job; MPI allows one in a process.

    world: the communicator of all ranks, once `init` or `join` made it.
    replaced: whether `world` is no longer the one that MPI started with, since ranks failed or may.
    parted: whether this rank came later, and the others go on without it.
    """

    world: Communicator | None = None
    replaced, parted = False, False


_job = _Job()


def init() -> Communicator:
    """Start MPI at the first call, and return the communicator of all ranks.

    From here on an uncaught exception ends the job on all ranks, with a traceback that names its rank. A rank that ends while
    others wait for it in a collective is an error there. numpy's BLAS uses this rank's share of the cores (unless
    OMP_NUM_THREADS or its like is set).

    Returns: the communicator of all ranks, or of one rank without a launcher. It belongs to the thread that called first.
            Processes that a rank forks are no ranks: their calls raise UsageError.
    Raises: LaunchError if there is no MPI library, or if the launcher started N independent single-rank processes, as happens
            when it belongs to another MPI than mpi4py's library; UsageError if an HPCAI_ variable is invalid.
    """
    if _job.world is None:
        with _starting:
            _job.world = _job.world or _start()
    return _job.world


def _start() -> Communicator:
    _check_environment()
    with _deadline_of_start():
        MPI = library.load()
        _refuse_singletons(MPI)
        world = Communicator(mpi.MpiWire(MPI.COMM_WORLD.Dup()))
        stall.watch_over(world)
    _install_hooks(world)
    cores.share_cores()
    if world.rank == 0 and not ops.is_native():
        print(
            "hpcai: the native kernels are not built; numpy folds instead, slower (reinstall with a C++17 compiler)",
            file=sys.stderr,
        )
    if world.rank == 0:
        environment.say_unknown("hpcai")
    return world


def _check_environment() -> None:
    """Raise UsageError if a variable is invalid; other ranks raise it after rank 0, whose end normally ends them before."""
    try:
        environment.check()
    except HpcaiError:
        time.sleep(min(launch().rank, 1))
        raise


def merged() -> mpi.MpiWire:
    """In a process that `MpiWire.grow` started: the wire of the earlier ranks and, behind them, the new ones."""
    try:
        with limits.deadline(2 * JOINING_S, code=0):  # nobody waits any more: no failure of the job
            MPI = library.load()
    except LaunchError:  # the others failed meanwhile, or go on without
        limits.quit()
    with limits.limited("joining the others", RanksLost.exit_code, JOINING_S):
        return mpi.MpiWire(MPI.Comm.Get_parent().Merge(high=True))


def join(wire: mpi.MpiWire) -> Communicator:
    """Make a communicator of this wire the one of all ranks, with what `init` does besides; returns it."""
    world = Communicator(wire)
    adopt(world)
    _install_hooks(world)
    return world


def adopt(world: Communicator) -> None:
    """Make this communicator, of the ranks that live, the one that `init` returns."""
    _job.world, _job.replaced = world, True


def outlives() -> bool:
    """Whether this program goes on without ranks that have failed, or may fail."""
    return _job.replaced or ulfm.enabled()


def part(world: Communicator, came_later: bool) -> Communicator | None:
    """Separate the ranks that were there from the start from those that came later (train/join.py), after their common work.

    Earlier ranks go on with their program; later ones end. Collective.

    Returns: the communicator of the ranks of the same kind; None on later ranks, unless no earlier rank is left.
    Raises: RankFailed, on all ranks alike.
    """
    ours = None
    with limits.limited("the parting from ranks that came later", RanksLost.exit_code):
        try:
            ours = world.split(int(came_later))
        except RankFailed:
            world.wire.revoke()  # who is through would wait in the vote for those who are not
        if not world.wire.all_agree(ours is not None) or ours is None:
            raise RankFailed("another rank failed while the ranks that came later were separated")
    _job.parted = came_later and ours.size < world.size
    if _job.parted:
        return None
    adopt(ours)
    return ours


def end(code: int) -> int:
    """Call before a program ends with this exit code. Where ranks have failed or may fail, it ends the process here, since
    MPI_Finalize may hang then; else it returns the code.
    """
    if _job.parted:  # how it ended the others say, whose program may make of it what it likes
        limits.quit()
    if outlives():
        assert _job.world is not None
        try:
            _job.world.leave()
        except RankFailed:  # the others may be in a recovery, which comes to the others' end or to their going on
            limits.quit(code)
        sys.stdout.flush()
        sys.stderr.flush()
        with limits.limited("the vote to end", code):
            _job.world.wire.all_agree(True)
        limits.quit(code)
    return code


def _deadline_of_start() -> contextlib.AbstractContextManager[None]:
    """Limit the time of MPI's start; the lowest rank that waits prints the error."""
    said, limit_s = launch(), max(limits.START_S, stall.timeout_s())
    if said.size == 1:
        return contextlib.nullcontext()
    words = (
        f"[rank {said.rank}] StallError: MPI did not start on all {said.size} ranks within {limit_s:g} s. "
        "A rank may not have been started, be frozen, or be out of the network's reach; $HPCAI_TIMEOUT_S sets the limit\n"
    )
    return limits.deadline(limit_s + min(said.rank, 5), RanksLost.exit_code if ulfm.enabled() else 1, words)


def _refuse_singletons(MPI: Any) -> None:
    said = launch()
    if said.size == 1 or MPI.COMM_WORLD.size != 1:
        return
    if said.rank == 0:
        pmi = "pmix" if "Open MPI" in library.name() else "pmi2"
        hint = f"srun --mpi={pmi}" if said.name == "srun" else f"the launcher of {library.name()}"
        beside = os.path.join(os.path.dirname(sys.executable), "mpirun")
        hint += f", here {beside} -n {said.size} ..." if os.path.exists(beside) and said.name != "srun" else ""
        raise LaunchError(
            f"{said.name} started {said.size} processes, but this Python's MPI is {library.name()} and each process is rank 0 "
            f"of 1. Start with {hint}, or install the mpi library that belongs to your launcher."
        )
    time.sleep(1.0)  # let rank 0 speak
    raise SystemExit(1)


def _install_hooks(world: Communicator) -> None:
    """End the whole job when one rank fails: without this the others wait for it for ever."""

    def abort(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, HpcaiError) and error.everywhere:
            with contextlib.suppress(HpcaiError):  # of which not all ranks have it after all
                _end_together(error)
        # The lowest failing rank speaks; the others give it the time to end them, so that one traceback is seen.
        rank = init().rank
        time.sleep(min(0.4 * rank, 4.0))
        if kind is KeyboardInterrupt:
            lines, code = ["interrupted\n"], 130
        elif issubclass(kind, HpcaiError):
            lines, code = [f"{kind.__name__}: {error}\n"], exit_code(error)
        else:
            lines, code = traceback.format_exception(kind, error, trace), 1
        marked = "".join(f"[rank {rank}] {line}\n" for line in "".join(lines).splitlines())
        sys.stdout.flush()
        sys.stderr.write(marked)
        sys.stderr.flush()
        time.sleep(0.2)  # MPICH's launcher drops what it has not read yet
        limits.last_resort()
        if outlives() and ulfm.is_last(init().wire):
            limits.quit(code)  # mpirun would end with 0 after MPI_Abort of a job whose other ranks have failed
        init().wire.comm.Abort(code)  # type: ignore[attr-defined]

    if world.size == 1:
        sys.excepthook = _end_alone
        return
    sys.excepthook = abort
    threading.excepthook = lambda args: abort(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)

    def leave() -> None:
        try:
            init().leave()
        except HpcaiError as error:
            if not (isinstance(error, RankFailed) and outlives()):  # the others may be in a recovery
                abort(type(error), error, None)
            return
        if outlives():
            with limits.limited("the vote to end", 1):
                init().wire.all_agree(True)

    def forked() -> None:
        """In a forked child, which is no rank: its end concerns no other process."""
        atexit.unregister(leave)
        sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__

    atexit.register(leave)
    os.register_at_fork(after_in_child=forked)


def _end_alone(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """On a rank that is alone errors of hpcai are one line and their exit code too; all others stay as Python shows them."""
    if not issubclass(kind, HpcaiError) or hasattr(sys, "ps1") or sys.flags.interactive:
        sys.__excepthook__(kind, error, trace)
        return
    print(f"{kind.__name__}: {one_line(error)}", file=sys.stderr, flush=True)
    raise SystemExit(exit_code(error))


def _end_together(error: HpcaiError) -> None:
    """End the program of a job whose ranks all have this error, which rank 0 prints. Raises: HpcaiError if not all have it."""
    if not outlives():  # where they do `end` asks all ranks, as it does in programs that have joined
        init().leave()
    if init().rank == 0:
        print(f"{type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)
    raise SystemExit(end(exit_code(error)))  # which Python takes from an excepthook too


def exit_code(error: BaseException) -> int:
    """The exit code of a program that ends with this error. Where ranks may outlive others, a StallError asks for a restart."""
    return RanksLost.exit_code if isinstance(error, StallError) and ulfm.enabled() else getattr(error, "exit_code", 1)
