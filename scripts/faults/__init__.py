"""`scripts/soak`: real runs under random faults, each held to what the server counted."""
