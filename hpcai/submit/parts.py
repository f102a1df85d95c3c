"""The parts in bash of all batch scripts: signals, requeueing, the launcher, and how training's end is classified.

hpcai.submit.script joins these texts. They read variables that a script sets first: python, site, launcher, elastic (as the
option of training), and for training max_restarts and options. A variable of the environment may hold any text, and bash runs
commands in a text that it takes for a number, as in (( )) or beside -gt; so such a variable is checked first.
"""

SAY = r"""
say() { printf '%(%F %T)T hpcai: %s\n' -1 "$*"; }
"""

REFUSE = r"""
refuse() { say "error: $2"; exit "$1"; } # EXIT-CODE WORDS
"""

ASKED = r"""
# Slurm's USR1 (time is nearly up, or another job comes first) and TERM reach this shell alone, at any time from now on. Ranks get
# both as USR1, since launchers take TERM as an order to kill. The trap uses nothing but builtins: a signal is lost while a trap
# waits for a command.
child=
asked=
restarts=0
if [[ $SLURM_RESTART_COUNT =~ ^(0|[1-9][0-9]{0,8})$ ]]; then restarts=$SLURM_RESTART_COUNT; fi
pass_on() {
    asked=1
    if [[ -n $child ]]; then kill -USR1 "$child" 2>/dev/null; fi
}
trap pass_on USR1 TERM

patiently() ( # COMMAND: until it succeeds, five times at most, since a controller that is busy or restarted does not answer
    trap '' TERM # Slurm ends all processes of a job that it requeues, and scontrol before it has said so
    for pause in 1 2 4 8; do
        "$@" && exit
        sleep "$pause"
    done
    "$@"
)

requeue() { # REASON: ask for another allocation, unless Slurm is ending the job anyway or it was restarted too often
    local job=$SLURM_JOB_ID state
    if [[ -n $SLURM_ARRAY_JOB_ID ]]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi # a bare number may mean the array
    state=$(patiently squeue -h -j "$job" -o %T)
    if [[ -n $state && $state != RUNNING ]]; then
        say "$1; Slurm is ending the job. What is checkpointed is kept: the same command goes on from it"
    elif ((restarts >= max_restarts)); then
        say "$1, but it was restarted $restarts times, which is the most allowed; the same command goes on"
    elif patiently scontrol requeue "$job"; then
        say "$1; requeued, it goes on from the newest checkpoint"
        exit
    else
        say "$1, but it could not be requeued; the same command goes on from the newest checkpoint"
    fi
}

refuse() { # EXIT-CODE WORDS: end, for good unless Slurm asked to leave: then that may be what failed
    if [[ -n $asked ]]; then requeue "asked to leave before training had begun"; fi
    say "error: $2"
    exit "$1"
}
"""

LAUNCH = r"""
# What the site says: modules, environment, launcher, network (HPCAI_SITE names another file).
site=${HPCAI_SITE:-$site}
if [[ $site != */* ]]; then site=./$site; fi # else bash looks for it on PATH
if [[ $python == /* && $python != *:* ]]; then PATH=${python%/*}:$PATH; fi
if [[ -e $site ]]; then . "$site"; fi
if [[ $launcher == auto && $elastic != never ]]; then launcher=mpirun; fi # srun ends all ranks when one fails
if [[ $launcher == auto ]]; then launcher=${HPCAI_LAUNCHER:-auto}; fi
if [[ -n $SLURM_CPUS_PER_TASK ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi # srun does not ask sbatch for it

# The launcher that belongs to Python's MPI library.
library=$("${python[@]}" -c 'import mpi4py
mpi4py.rc.initialize = False
try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    from hpcai.comm.launch import library_search
    raise SystemExit(library_search.absent(str(error)))
print(MPI.Get_library_version().strip("\0"))' 2>&1) || refuse 1 "${python[*]} has no MPI library: ${library##*$'\n'}"
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
        if [[ $elastic != never ]]; then launch+=(--with-ft ulfm); fi
        if [[ $elastic == grow ]]; then launch+=(--prtemca state_base_recoverable 1); fi
    fi
    ;;
*) refuse 2 "there is no launcher $launcher, but srun-pmix, srun-pmi2, mpirun and auto" ;;
esac
read -r -d '' -a more <<<"$HPCAI_LAUNCHER_OPTIONS" # in words, of which none is taken for a pattern of files
launch+=("${more[@]}")
"""

BENCH = r"""
exec "${launch[@]}" "${python[@]}" -m bench.allreduce "$@"
"""

TRAIN = r"""
if [[ -n $asked ]]; then
    requeue "asked to leave before training had begun"
    exit 85
fi
options+=("$@" --resume auto) # last, so that nothing else is taken, as from a file of options
say "${launch[*]} ${python[*]} -m hpcai.train ${options[*]}  (restarts: $restarts)"
"${launch[@]}" "${python[@]}" -m hpcai.train "${options[@]}" &
child=$!
code=127
if [[ -n $asked ]]; then kill -USR1 "$child"; fi
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
wait "$child"
ended=$?
child=
if [[ $ended != 127 ]]; then code=$ended; fi

all_nodes() { # whether a step reaches all nodes
    timeout -k 1 30 srun --overlap --mpi=none -N "$SLURM_NNODES" -n "$SLURM_NNODES" --ntasks-per-node=1 true
}

# mpirun ends with 0 also when a node is lost, and with ulfm when all ranks are; where it does not get over one it is
# killed, or crashes.
unsure=
if [[ $launcher == mpirun ]]; then
    if [[ $code == 0 && $SLURM_NNODES =~ ^([2-9]|[1-9][0-9]+)$ ]]; then unsure=1; fi
    if [[ $code =~ ^(0|134|137|139)$ && $elastic != never ]]; then unsure=1; fi
fi

if [[ $code == 85 ]]; then
    requeue "a checkpoint is written"
elif [[ -n $asked ]] && ((code > 128)); then
    requeue "asked to leave before training had begun"
elif [[ -n $unsure ]]; then # files tell whether the run is finished
    timeout -k 1 600 "${python[@]}" -m hpcai.submit.finished "${options[@]}"
    case $? in
    0) code=0 ;;
    3) requeue "ranks or a node were lost" ;;
    *) all_nodes || { sleep 10; all_nodes; } || requeue "a node was lost" ;;
    esac
fi
say "training ended with exit code $code"
exit "$code"
"""
