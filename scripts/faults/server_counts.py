"""The server's own counts, which the report must match."""

from __future__ import annotations

from typing import Any

import redis

from scripts.faults.round_specs import COUNTERS

COMMANDS = ("set", "get", "incr")
"""The commands of every round's plan."""


def server_calls(client: redis.Redis) -> dict[str, int]:
    """Calls of the plan's commands since the server's start, rejected calls included. Raises redis.RedisError."""
    rows: Any = client.info("commandstats")
    found = {name: rows.get(f"cmdstat_{name}", {}) for name in COMMANDS}
    return {name: int(row.get("calls", 0) + row.get("rejected_calls", 0)) for name, row in found.items()}


def incr_executed(client: redis.Redis) -> int:
    """Executed INCR commands: the sum of the keys that INCR counts up. Raises redis.RedisError."""
    keys: Any = list(client.scan_iter(match=COUNTERS + "*", count=1000))
    values: Any = client.mget(keys) if keys else []
    return sum(int(value) for value in values if value is not None)


def calls_by_port(client: redis.Redis) -> dict[int, int]:
    """Calls of each open connection, by the client's port. Raises redis.RedisError."""
    listed: Any = client.client_list()
    return {int(row["addr"].rpartition(":")[2]): int(row.get("tot-cmds", 0)) for row in listed}
