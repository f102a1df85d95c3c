"""The text of batch scripts: what a job asks of Slurm, how ranks are started, and what happens when the allocation ends first.

`python -m hpcai.submit.script train` and `... bench` print slurm/train.sbatch and slurm/bench.sbatch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from shlex import quote
from typing import NamedTuple

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
        f"options=({' '.join(map(quote, ['--resume', 'auto', *job.arguments]))})",
    ]
    if job.tasks:
        lines.append("case $SLURM_ARRAY_TASK_ID in")
        lines += [f"    {i}) options+=({' '.join(map(quote, task))}) ;;" for i, task in enumerate(job.tasks)]
        lines.append("esac")
    return "\n".join(lines) + "\n" + _LAUNCH + _TRAIN


def bench(job: Job) -> str:
    """The batch script of bench.allreduce."""
    lines = [
        "#!/bin/bash",
        "# Measures all-reduce on the nodes of this allocation: sbatch -N 2 --ntasks-per-node=4 slurm/bench.sbatch -e 64M",
        *_asked(job),
        "",
        *_settings(job),
    ]
    return "\n".join(lines) + "\n" + _LAUNCH + _BENCH


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


_LAUNCH = r"""
say() { printf '%(%F %T)T hpcai: %s\n' -1 "$*"; }

# What the site says: modules, environment, launcher, network (HPCAI_SITE names another file).
site=${HPCAI_SITE:-$site}
if [[ $python == /* ]]; then PATH=${python%/*}:$PATH; fi
if [[ -e $site ]]; then . "$site"; fi
if [[ $launcher == auto ]]; then launcher=${HPCAI_LAUNCHER:-auto}; fi
if [[ -n $SLURM_CPUS_PER_TASK ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi # srun does not ask sbatch for it

# The launcher that belongs to Python's MPI library.
library=$("${python[@]}" -c 'import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(MPI.Get_library_version().strip("\0"))' 2>&1) || {
    say "error: ${python[*]} has no MPI library: ${library##*$'\n'}"
    exit 1
}
if [[ $launcher == auto ]]; then
    if [[ $library != *"Open MPI"* ]]; then launcher=srun-pmi2
    elif [[ $(srun --mpi=list 2>&1) == *pmix* ]]; then launcher=srun-pmix
    else launcher=mpirun; fi
fi
case $launcher in
srun-pmix) launch=(srun --mpi=pmix) ;;
srun-pmi2) launch=(srun --mpi=pmi2 --kill-on-bad-exit=1) ;; # by itself pmi2 lets the others wait for a rank that died
mpirun)
    launch=(mpirun)
    if [[ $library == *"Open MPI"* ]]; then
        launch+=(--bind-to none)
        if [[ -n $SLURM_NTASKS_PER_NODE ]]; then launch+=(--map-by "ppr:$SLURM_NTASKS_PER_NODE:node"); fi
    fi
    ;;
*) say "error: there is no launcher $launcher, but srun-pmix, srun-pmi2, mpirun and auto"; exit 2 ;;
esac
launch+=($HPCAI_LAUNCHER_OPTIONS)
"""

_BENCH = r"""
exec "${launch[@]}" "${python[@]}" -m bench.allreduce "$@"
"""

_TRAIN = r"""
# Slurm's USR1 (time is nearly up, or another job comes first) and TERM reach this shell alone. Ranks get both as USR1, since
# launchers take TERM as an order to kill. Traps use nothing but builtins: a signal is lost while a shell waits for a command.
child=
asked=
pass_on() {
    asked=1
    if [[ -n $child ]]; then kill -USR1 "$child" 2>/dev/null; fi
}
trap pass_on USR1 TERM
say "${launch[*]} ${python[*]} -m hpcai.train ${options[*]} $*  (restarts: ${SLURM_RESTART_COUNT:-0})"
"${launch[@]}" "${python[@]}" -m hpcai.train "${options[@]}" "$@" &
child=$!
if [[ -n $asked ]]; then kill -USR1 "$child"; fi
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
wait "$child"
ended=$?
if [[ $ended != 127 ]]; then code=$ended; fi

requeue() { # REASON: ask for another allocation, unless Slurm is ending the job anyway or it was restarted too often
    local job=$SLURM_JOB_ID
    if [[ -n $SLURM_ARRAY_JOB_ID ]]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi # a bare number may mean the array
    if [[ $(squeue -h -j "$job" -o %T) != RUNNING ]]; then
        say "$1; Slurm is ending the job. What is checkpointed is kept: the same command goes on from it"
    elif ((${SLURM_RESTART_COUNT:-0} >= max_restarts)); then
        say "$1, but it was restarted $SLURM_RESTART_COUNT times, which is the most allowed; the same command goes on"
    elif scontrol requeue "$job"; then
        say "$1; requeued, it goes on from the newest checkpoint"
        exit
    else
        say "$1, but it could not be requeued; the same command goes on from the newest checkpoint"
    fi
}

if [[ $code == 85 ]]; then
    requeue "a checkpoint is written"
elif [[ -n $asked ]] && ((code > 128)); then
    requeue "asked to leave before training had begun"
elif [[ $code == 0 && $launcher == mpirun ]] && ((SLURM_NNODES > 1)); then
    # mpirun ends with 0 when a node is lost. A step that reaches all nodes tells that from a run that is finished.
    all_nodes=(-N "$SLURM_NNODES" -n "$SLURM_NNODES" --ntasks-per-node=1)
    timeout -k 1 30 srun --overlap --mpi=none "${all_nodes[@]}" true || requeue "a node was lost"
fi
say "training ended with exit code $code"
exit "$code"
"""


if __name__ == "__main__":
    made = {"train": train(Job()), "bench": bench(Job(name="hpcai-bench", time="0:15:00"))}
    sys.stdout.write(made[sys.argv[1]])
