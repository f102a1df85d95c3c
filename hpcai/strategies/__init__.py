"""Strategies: how replicas of one model agree. A strategy can wrap another."""
