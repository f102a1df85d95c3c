"""`python circle.py`, on 4 ranks of two pretended nodes: waits in shared memory and for messages that close a circle, unless a rank that
waits in shared memory moves its messages too. Rank 1 of a node comes to its node's collective after a message from the other node,
which is sent after the other node's collective, which waits for the long message that rank 0 has begun to send."""

import numpy as np

import hpcai

LONG = 1 << 24

comm = hpcai.init()
node = comm.split_by_node()
assert node.size == 2
assert node.shares_memory
x, word = np.full(LONG, comm.rank, np.float32), np.zeros(1, np.float32)
if comm.rank == 0:
    sent = comm.isend(x, 2)
if comm.rank == 1:
    comm.recv(word, 3)
if comm.rank == 2:
    comm.recv(x, 0)
node.allreduce(np.zeros(100_000, np.float32))
if comm.rank == 3:
    comm.send(word, 1)
if comm.rank == 0:
    sent.wait()
assert (x[-1], x[0]) == ((0.0, 0.0) if comm.rank in (0, 2) else (comm.rank, comm.rank))
comm.barrier()
if comm.rank == 0:
    print("through")
