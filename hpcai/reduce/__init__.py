"""The hall between codecs and collectives: reducers, which take the mean of an array over all ranks in fewer bytes."""
