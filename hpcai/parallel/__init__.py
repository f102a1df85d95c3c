"""One model on many ranks: the mesh of data-, tensor- and pipeline-parallel ranks, pipeline schedules, shards of state."""
