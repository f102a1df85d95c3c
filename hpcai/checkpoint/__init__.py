"""Checkpoints: their format, their shards, and the places where they are kept. They know no ranks, options or trainer."""
