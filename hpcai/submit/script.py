"""The text of batch scripts: the request to Slurm, how ranks are started, and what happens when the allocation ends first.

`python -m hpcai.submit.script train` and `... bench` print slurm/train.sbatch and slurm/bench.sbatch.

Parts of the text come from options, files of options, the environment and names of folders. They are all checked by `_checked`
and quoted here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from shlex import quote
from typing import NamedTuple

from hpcai.errors import UsageError
from hpcai.submit import parts, quoting

LAUNCHERS = ("auto", "srun-pmix", "srun-pmi2", "mpirun")
"""The launchers that can start the ranks; auto chooses in the job, by the MPI library and by Slurm."""

CALLED = {
    "name": "the job's name (--name, else that of the run's folder)",
    "log": "the run's folder",
    "python": "the path of Python",
    "site": "the path of the site's settings",
    "arguments": "an option of training",
    "tasks": "an option of --sweep",
    "more": "--sbatch",
}
"""The names of a job's fields in messages; the other fields are options of the same name."""


class Job(NamedTuple):
    """The settings of a batch script; the defaults are those of slurm/train.sbatch."""

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
    """The batch script of a training run, or of an array of runs if the job has tasks, which are the further options of each run.

    Raises: UsageError for texts that a script cannot hold.
    """
    job = _checked(job)
    lines = [
        "#!/bin/bash",
        "# Trains on the nodes of this allocation, goes on from the newest checkpoint, and asks for another allocation when",
        "# this one ends first. Written by `python -m hpcai.submit`; slurm/README.md says how to use it by hand.",
        *_asked(job),
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --signal=B:USR1@{job.signal_seconds}",
        *([f"#SBATCH --array=0-{len(job.tasks) - 1}"] if job.tasks else []),
        *(f"#SBATCH {_further(option)}" for option in job.more),
        "",
        *_settings(job),
        f"max_restarts={job.max_restarts}",
        f"elastic={quote(job.elastic) if job.elastic else '${HPCAI_ELASTIC:-never}'}",
        f"options=({' '.join(map(quote, job.arguments))})",
    ]
    if job.tasks:
        lines.append("case $SLURM_ARRAY_TASK_ID in")
        lines += [f"    {i}) options+=({' '.join(map(quote, task))}) ;;" for i, task in enumerate(job.tasks)]
        last = f"error: this script has tasks 0 to {len(job.tasks) - 1}, not '$SLURM_ARRAY_TASK_ID'"
        lines += [f'    *) echo "{last}" >&2; exit 2 ;;', "esac"]
    return "\n".join(lines) + "\n" + parts.SAY + parts.ASKED + parts.LAUNCH + parts.TRAIN


def bench(job: Job) -> str:
    """The batch script of bench.allreduce. Raises: UsageError, as `train`."""
    job = _checked(job)
    lines = [
        "#!/bin/bash",
        "# Measures all-reduce on the nodes of this allocation: sbatch -N 2 --ntasks-per-node=4 slurm/bench.sbatch -e 64M",
        *_asked(job),
        "",
        *_settings(job),
        "elastic=never",
    ]
    return "\n".join(lines) + "\n" + parts.SAY + parts.REFUSE + parts.LAUNCH + parts.BENCH


def _checked(job: Job) -> Job:
    """The job, if a script can hold all its texts. Raises: UsageError, as `quoting.check`."""
    for field, value in job._asdict().items():
        for text in _texts(value):
            quoting.check(CALLED.get(field, f"--{field}"), text)
    return job


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Sequence):
        for one in value:
            yield from _texts(one)


def _asked(job: Job) -> list[str]:
    """The #SBATCH lines of the job's own options."""
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
    return [f"#SBATCH --{name}={_value(name, value)}" for name, value in asked.items() if value is not None]


def _value(name: str, value: object) -> str:
    if value == "":
        raise UsageError(f"--{name} wants a value, got ''")
    return quoting.for_slurm(f"--{name}", str(value))


def _further(option: str) -> str:
    """--OPTION=VALUE as one word; where a space follows the option's name, as in `--mem 4G`, the value is a second word."""
    name, space, value = option.partition(" ")
    words = [name, value.strip()] if space and "=" not in name else [option]
    return " ".join(quoting.for_slurm("--sbatch", word) for word in words)


def _settings(job: Job) -> list[str]:
    return [f"python=({quote(job.python)})", f"site={quote(job.site)}", f"launcher={quote(job.launcher)}"]


if __name__ == "__main__":
    made = {"train": train(Job()), "bench": bench(Job(name="hpcai-bench", time="0:15:00"))}
    if len(sys.argv) != 2 or sys.argv[1] not in made:
        sys.exit(f"hpcai.submit.script: error: wants one of {', '.join(made)}")
    sys.stdout.write(made[sys.argv[1]])
