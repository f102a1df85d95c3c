"""Optimizers, schedules and clipping on flat arrays. No ranks here."""
