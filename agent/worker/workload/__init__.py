"""What a worker issues: which commands, with which keys and values, in which order."""
