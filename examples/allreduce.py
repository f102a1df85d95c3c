"""Sums over ranks: mpirun -n 4 python examples/allreduce.py"""

import numpy as np

import hpcai

comm = hpcai.init()
gradient = np.full(1_000_000, comm.rank + 1, np.float32)
comm.allreduce(gradient, "mean")  # in place; the same bytes on every rank

shared = comm.symmetric_empty(1_000_000)  # in memory that the node's ranks share: reduced without a copy
shared[:] = comm.rank
request = comm.iallreduce(shared, "max")  # goes on while this rank computes
activation = np.tanh(gradient)
request.wait()

mine = comm.reduce_scatter(gradient)  # this rank's chunk of the sum
comm.allgather(gradient)  # everyone's chunks
if comm.rank == 0:
    print(f"{comm.size} ranks: sum of means {gradient[0]:g}, largest rank {shared[0]:g}, a chunk of {mine.size:,}")
