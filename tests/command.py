"""Programs as a person starts them: real processes under the launcher that lies beside this Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MPIRUN = Path(sys.executable).parent / "mpirun"
needs_mpirun = pytest.mark.skipif(not MPIRUN.exists(), reason="there is no mpirun beside this Python")


def environment(**more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HPCAI_", "PMI", "OMPI_COMM"))}
    allow = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    return kept | allow | more


def start(ranks, *arguments, program=("-m", "hpcai.train"), launcher=(), **more):
    command = [MPIRUN, *launcher, "-n", str(ranks), sys.executable, *program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(ranks, *arguments, limit=60, **more):
    process = start(ranks, *arguments, **more)
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err
