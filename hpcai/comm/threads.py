"""Ranks as threads of one process: the same communicator and algorithms without MPI, for tests, doctests and debugging."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from hpcai.comm.communicator import Communicator
from hpcai.comm.wires.threads import Group, ThreadWire, World
from hpcai.errors import RankFailed

T = TypeVar("T")


def run(size: int, program: Callable[..., T], *args: Any) -> list[T]:
    """Call `program(comm, *args)` on `size` ranks, each a thread of this process.

    Args:   size: the number of ranks.
            program: takes a rank's `Communicator` and `args`.
    Returns: the results of the ranks, in rank order.
    Raises: the error of the lowest rank that failed by itself. The ranks that wait for it end with RankFailed.

    >>> run(3, lambda comm: comm.allgather_object(comm.rank ** 2))
    [[0, 1, 4], [0, 1, 4], [0, 1, 4]]
    """
    world = World()
    group = Group(size, world)
    results: list[Any] = [None] * size
    errors: list[BaseException | None] = [None] * size

    def body(rank: int) -> None:
        try:
            results[rank] = program(Communicator(ThreadWire(rank, group)), *args)
        except BaseException as error:
            errors[rank] = error
            world.fail()

    threads = [threading.Thread(target=body, args=(rank,), daemon=True, name=f"rank {rank}") for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raised = [error for error in errors if error is not None]
    if raised:
        raise next((error for error in raised if not isinstance(error, RankFailed)), raised[0])
    return results
