"""Codecs: fewer bytes for one array on one rank. A codec knows nothing of other ranks."""
