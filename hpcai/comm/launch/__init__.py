"""Before MPI starts, and beside it: launchers, hosts, cores, and the search for an MPI library."""
