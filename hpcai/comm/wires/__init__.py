"""What carries bytes between ranks: MPI, shared memory of a node, queues between threads."""
