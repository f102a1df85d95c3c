"""What of a replica outlives its ranks, and how it gets into checkpoints and to other ranks."""
