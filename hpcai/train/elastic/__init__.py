"""Going on without ranks that failed, or with others in their place."""
