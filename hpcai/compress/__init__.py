"""Fewer bytes for one array on one rank: codecs, which know nothing of ranks."""
