"""Measurements of a worker process: rows of operations, connection events, bytes, and the process's own usage."""
