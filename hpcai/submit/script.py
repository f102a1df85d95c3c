"""The text of batch scripts: what a job asks of Slurm, how ranks are started, and what happens when the allocation ends first.

`python -m hpcai.submit.script train` and `... bench` print slurm/train.sbatch and slurm/bench.sbatch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from shlex import quote
from typing import NamedTuple

from hpcai.submit import parts

LAUNCHERS = ("auto", "srun-pmix", "srun-pmi2", "mpirun")
"""How ranks can be started; auto asks the MPI library and Slurm, in the job."""


class Job(NamedTuple):
    """What a batch script says; the defaults are those of slurm/train.sbatch."""

    name: str = "hpcai"
    nodes: int = 1
    ranks_per_node: int = 1
    time: str = "1:00:00"
    partition: str | None = None
    account: str | None = None
    cpus_per_rank: int | None = None
    gpus_per_rank: int | None = None
    signal_seconds: int = 120
    max_restarts: int = 100
    launcher: str = "auto"
    elastic: str | None = None
    log: str = "%x-%j.log"
    python: str = "python"
    site: str = "slurm/site.sh"
    arguments: Sequence[str] = ()
    tasks: Sequence[Sequence[str]] = ()
    more: Sequence[str] = ()


def train(job: Job) -> str:
    """The batch script of a training run, or of an array of them if the job has tasks: further options for each."""
    lines = [
        "#!/bin/bash",
        "# Trains on the nodes of this allocation, goes on from the newest checkpoint, and asks for another allocation when",
        "# this one ends first. Written by `python -m hpcai.submit`; slurm/README.md says how to use it by hand.",
        *_asked(job),
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --signal=B:USR1@{job.signal_seconds}",
        *([f"#SBATCH --array=0-{len(job.tasks) - 1}"] if job.tasks else []),
        *(f"#SBATCH {option}" for option in job.more),
        "",
        *_settings(job),
        f"max_restarts={job.max_restarts}",
        f"elastic={job.elastic or '${HPCAI_ELASTIC:-never}'}",
        f"options=({' '.join(map(quote, job.arguments))})",
    ]
    if job.tasks:
        lines.append("case $SLURM_ARRAY_TASK_ID in")
        lines += [f"    {i}) options+=({' '.join(map(quote, task))}) ;;" for i, task in enumerate(job.tasks)]
        lines.append("esac")
    return "\n".join(lines) + "\n" + parts.SAY + parts.ASKED + parts.LAUNCH + parts.TRAIN


def bench(job: Job) -> str:
    """The batch script of bench.allreduce."""
    lines = [
        "#!/bin/bash",
        "# Measures all-reduce on the nodes of this allocation: sbatch -N 2 --ntasks-per-node=4 slurm/bench.sbatch -e 64M",
        *_asked(job),
        "",
        *_settings(job),
    ]
    return "\n".join(lines) + "\n" + parts.SAY + parts.REFUSE + parts.LAUNCH + parts.BENCH


def _asked(job: Job) -> list[str]:
    """The lines that say what is asked of Slurm."""
    asked = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.ranks_per_node,
        "cpus-per-task": job.cpus_per_rank,
        "gpus-per-task": job.gpus_per_rank,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "output": job.log,
    }
    return [f"#SBATCH --{name}={quote(str(value))}" for name, value in asked.items() if value is not None]


def _settings(job: Job) -> list[str]:
    return [f"python=({quote(job.python)})", f"site={quote(job.site)}", f"launcher={job.launcher}"]


if __name__ == "__main__":
    made = {"train": train(Job()), "bench": bench(Job(name="hpcai-bench", time="0:15:00"))}
    sys.stdout.write(made[sys.argv[1]])
