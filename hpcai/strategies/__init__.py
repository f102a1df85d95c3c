"""How replicas of one model agree: strategies, which compose."""
