"""A fuzzer of everything that comes in from outside: files of data, options and checkpoints, and what batch scripts are made of."""
