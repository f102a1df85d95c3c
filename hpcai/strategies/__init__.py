"""Strategies: how replicas of one model agree. They compose."""
