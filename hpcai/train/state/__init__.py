"""The state of a replica that survives its ranks, and its transfer into checkpoints and to other ranks."""
