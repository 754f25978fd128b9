"""Reading and writing a target as each driver and the coordinator do, without agents and load."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from contextlib import closing
from typing import Any

from common.cancellation import Cancellation
from common.plan.schema import Pools, Target
from common.redis_client import PRIMARY, ConnectionEvents, build_client, nodes_of, open_node_client, slot_of
from common.redis_client.async_clients import build_async_client, close_async_client, open_async_client
from common.redis_client.connections.connection_tracking import Unobserved
from common.redis_client.wire_connections import PENDING, WOULD_BLOCK, InstancePools, SlotMap, WireConnection

KEYS = tuple(f"key:{number}" for number in range(12))
"""Keys of all three primaries of a cluster."""

Reach = Callable[..., list[Any]]


def by_client(target: Target, events: ConnectionEvents | None = None) -> list[Any]:
    """Set each of KEYS to its own name by redis-py. Returns the values read back."""
    with build_client(target, Pools(), events=events or Unobserved(), cancellation=Cancellation()) as client:
        return [client.execute_command("SET", key, key) and client.execute_command("GET", key) for key in KEYS]


def by_asyncio(target: Target, events: ConnectionEvents | None = None) -> list[Any]:
    """As `by_client`, by redis.asyncio."""

    async def play() -> list[Any]:
        client = build_async_client(target, Pools(), events=events or Unobserved(), cancellation=Cancellation())
        try:
            await open_async_client(client, target)
            for key in KEYS:
                await client.execute_command("SET", key, key)
            return [await client.execute_command("GET", key) for key in KEYS]
        finally:
            await close_async_client(client)

    return asyncio.run(play())


def by_wire(target: Target, events: ConnectionEvents | None = None) -> list[Any]:
    """As `by_client`, over connections of the wire driver."""
    with (
        closing(SlotMap(target)) as primaries,
        closing(InstancePools(target, Pools(), events=events or Unobserved(), cancellation=Cancellation())) as pools,
    ):
        nodes, links, found = primaries.slots(), dict[str, WireConnection](), []
        for key in KEYS:
            link = links.setdefault(
                nodes[slot_of(key.encode())], WireConnection(pools.pool_for(nodes[slot_of(key.encode())]))
            )
            written, read = ask_link(link, ["SET", key, key], ["GET", key])
            found.append(written and read)
        return found


def by_coordinator(target: Target) -> list[Any]:
    """Ask each node for its number of keys, as the coordinator does. Returns as many values of KEYS as the primaries
    have keys; so another function must write first."""
    sizes = []
    for node in nodes_of(target):
        with open_node_client(target, node) as client:
            sizes.append(client.execute_command("DBSIZE") if node.role == PRIMARY else 0)
    return [key.encode() for key in KEYS][: sum(sizes)]


def ask_link(link: WireConnection, *commands: list[str]) -> list[Any]:
    """Send commands on a wire connection. Returns the replies."""
    sock, notes = link.open(), list[Any]()
    reader, replies = link.reader(notes), list[Any]()
    for command in commands:
        sock.sendall(b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a.encode()) for a in command))
    while len(replies) < len(commands):
        assert select.select([sock], [], [], 10)[0], "no reply"
        try:
            reader.feed(sock.recv(65536))
        except WOULD_BLOCK:
            continue
        while (reply := reader.gets()) is not PENDING:
            replies.append(reply)
    return replies


WRITTEN = [key.encode() for key in KEYS]
EVERY_WAY: tuple[Reach, ...] = (by_client, by_asyncio, by_wire, by_coordinator)
"""All ways to reach a target. The last one only reads."""
