"""Transports between ranks: MPI, the shared memory of a node, queues between threads."""
