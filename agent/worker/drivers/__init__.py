"""How a pool issues its operations: redis-py with threads, redis.asyncio with tasks, or RESP over bare sockets."""
