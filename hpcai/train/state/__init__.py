"""The state of a replica that outlives its ranks, and its way into checkpoints and to other ranks."""
