"""What does not need MPI: launchers, hosts, cores, and the search for an MPI library."""
