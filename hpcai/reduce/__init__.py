"""Reducers join codecs and collectives: they compute the mean of an array over all ranks with fewer bytes."""
