"""One model on many ranks: the mesh of data-, tensor- and pipeline-parallel ranks, schedules, shards of state."""
