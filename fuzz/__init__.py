"""What a stranger, or a database that is not what it seems, may send: bytes at random, steered by what they reach."""
