"""Layers, losses and models as init, forward and backward on one rank's batch. No ranks here."""
