"""The operations that a worker issues: commands in order, with their keys and values."""
