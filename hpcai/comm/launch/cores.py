"""The number of cores of a rank, and of threads that numpy's BLAS may use on them."""

from __future__ import annotations

import functools
import os

from hpcai.comm.launch.launcher import launch


def core_share() -> int:
    """How many cores this rank has: all that it is bound to, else its share of the node's cores, at least 1."""
    allowed, cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    return allowed if allowed < cores else max(1, cores // launch().local_size)


@functools.cache
def spare_core() -> bool:
    """True if one thread can compute while another waits."""
    return core_share() > 1


def share_cores() -> None:
    """Give numpy's BLAS this rank's share of the cores, so that ranks on a node do not crowd each other out."""
    if any(name in os.environ for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")):
        return
    limit_threads(core_share())


def limit_threads(count: int) -> None:
    """Let numpy's BLAS use at most `count` threads."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(count)
