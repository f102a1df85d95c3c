"""Collectives by messages: short loops that join a schedule, a fold and a wire."""
