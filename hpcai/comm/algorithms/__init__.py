"""Collectives by messages: schedules, folds and wires meet in loops of a few lines."""
