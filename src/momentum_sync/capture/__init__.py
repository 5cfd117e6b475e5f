"""From the WAL: the replication slot, offsets, and the checkpoint."""
