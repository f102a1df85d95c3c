"""Data: where samples come from, and which rank sees which of them when."""
