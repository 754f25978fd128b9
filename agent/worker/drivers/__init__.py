"""The drivers, which issue operations: redis-py with threads, redis.asyncio with tasks, or RESP on raw sockets."""
