"""A target used as each driver and the coordinator use it, without agents and without load."""

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
"""Of all three primaries of a cluster."""

Reach = Callable[[Target], list[Any]]


def by_client(target: Target, events: ConnectionEvents | None = None) -> list[Any]:
    """Set each of KEYS to its own name and read it, by redis-py. Returns what was read."""
    with build_client(target, Pools(), events=events or Unobserved(), cancellation=Cancellation()) as client:
        return [client.execute_command("SET", key, key) and client.execute_command("GET", key) for key in KEYS]


def by_asyncio(target: Target, events: ConnectionEvents | None = None) -> list[Any]:
    """The same by redis.asyncio."""

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
    """The same over connections as the wire driver opens them."""
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
    """The same as far as the coordinator goes: each node is asked how many keys it has. Returns KEYS' values where
    these are as many as primaries have, so that a writer has to come first."""
    sizes = []
    for node in nodes_of(target):
        with open_node_client(target, node) as client:
            sizes.append(client.execute_command("DBSIZE") if node.role == PRIMARY else 0)
    return [key.encode() for key in KEYS][: sum(sizes)]


def ask_link(link: WireConnection, *commands: list[str]) -> list[Any]:
    """The replies to commands on a connection whose socket is ours."""
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
"""By which a target is reached; the last only reads."""
