"""The options of training: what they are, how they are read, and which do not go together."""
