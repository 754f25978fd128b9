"""What a worker process measures: rows of operations, connection events, bytes, and the process's own usage."""
