import pytest

from hpcai.comm.launch.launcher import launch


@pytest.mark.parametrize(
    "environment, rank, size, local",
    [
        ({}, 0, 1, 1),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 3, 8, 4),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 1, 2, 2),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, 5, 6, 2),
        (  # srun --mpi=pmi2
            {
                "PMI_RANK": "2",
                "PMI_SIZE": "4",
                "SLURM_PROCID": "2",
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
            },
            2,
            4,
            2,
        ),
        (  # MPICH's mpirun within an allocation, whose proxies srun started
            {
                "PMI_RANK": "1",
                "PMI_SIZE": "2",
                "MPI_LOCALNRANKS": "1",
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
            },
            1,
            2,
            1,
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, 0, 1, 1),  # the batch script itself
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_STEP_NUM_TASKS": "2",
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "4",
            },
            1,
            4,
            4,
        ),
    ],
)
def test_launch(environment, rank, size, local):
    assert launch(environment)[1:] == (rank, size, local)
