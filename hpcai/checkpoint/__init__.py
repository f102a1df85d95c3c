"""Checkpoints: their format, their shards, and the places where they are kept. No ranks, no options, no trainer."""
