"""The number of cores of a rank, the number of threads that numpy's BLAS may use on them, and the BLAS kernel that runs."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

from hpcai.comm.launch.launcher import launch

PIN = "OPENBLAS_CORETYPE"
"""The variable of the environment that makes OpenBLAS take another kernel than the processor's own."""


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


def blas() -> str:
    """Return numpy's BLAS in words: library, version and the kernel that it chose, such as "openblas 0.3.30 SkylakeX"."""
    import numpy  # noqa: F401 (loads the library)
    import threadpoolctl

    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    names = [f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}".strip() for pool in pools]
    return "; ".join(names) or "unknown"


def unpinned_blas() -> str:
    """Return `blas()` as it would be if no variable of the environment named a kernel. Cost: 0.2 s, for another Python."""
    program = f"from {__name__} import blas; print(blas())"
    environment = {name: value for name, value in os.environ.items() if name != PIN}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()
