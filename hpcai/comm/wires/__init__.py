"""The carriers of bytes between ranks: MPI, shared memory of a node, queues between threads."""
