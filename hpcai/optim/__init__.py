"""Optimizers, schedules and clipping on flat arrays. No ranks here."""

from hpcai.optim.optimizers import Optimizer, adam, adamw, lamb, momentum, nesterov, sgd

__all__ = ["Optimizer", "adam", "adamw", "lamb", "momentum", "nesterov", "sgd"]
