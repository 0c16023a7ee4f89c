"""What survives a restart: the journal, checkpoints, users' shards."""
