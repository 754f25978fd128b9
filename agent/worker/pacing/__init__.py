"""When a worker may begin operations: closed loops, rates and stages, the same for every driver."""
