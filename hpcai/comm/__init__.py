"""Bytes between ranks: a communicator on a wire, collectives as schedule + fold + wire."""
