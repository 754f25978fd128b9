"""`scripts/soak`: real runs under random faults, each checked against the server's counts."""
