"""Clients that send reads to replicas, as `target.cluster.read_from` says: for a primary that Sentinels know, and for a
standalone server with `target.replicas`. redis-py does this only for clusters.

Which commands are reads is redis-py's own list, which its cluster client uses too. A pipeline is sent to a replica if
all its commands are reads; a transaction never.

Behind Sentinels each connection of the replicas' TCP pool goes to the next replica that Sentinels list, as with
redis-py's `slave_for`; to the primary if there is none.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import redis
import redis.asyncio
from redis.commands import READ_COMMANDS

from common.plan.schema import ReadFrom
from common.redis_client.sentinels import AsyncPrimaryClient, PrimaryClient

PRIMARY_PLACE = 0
"""The place of the primary; replicas follow."""


def places(read_from: ReadFrom, replicas: int) -> Iterator[int]:
    """The place of each read: PRIMARY_PLACE, or the number of a replica, from 1. Starts at random; otherwise all
    clients would use the same server at the same time."""
    first = PRIMARY_PLACE if read_from in (ReadFrom.ANY, ReadFrom.RANDOM) else 1
    candidates = range(first, replicas + 1)
    if read_from in (ReadFrom.RANDOM, ReadFrom.RANDOM_REPLICA):
        return iter(lambda: random.choice(candidates), None)
    start = random.randrange(len(candidates))
    return itertools.cycle([*candidates[start:], *candidates[:start]])


def is_read(command: object) -> bool:
    """Whether a command only reads."""
    return command in READ_COMMANDS


def _all_read(commands: Sequence[Any]) -> bool:
    """Whether all commands of a pipeline's stack only read."""
    return bool(commands) and all(is_read(arguments[0]) for arguments, _ in commands)


class ReadSplitClient(PrimaryClient):
    """A client of the primary that sends reads to replicas. Call `split` before use."""

    readers: Sequence[redis.Redis] = ()

    def split(self, read_from: ReadFrom, readers: Sequence[redis.Redis]) -> None:
        """readers: clients of the replicas, which this client closes."""
        self.readers = readers
        self._places = places(read_from, len(readers))

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if is_read(args[0]) and (place := next(self._places)) != PRIMARY_PLACE:
            return self.readers[place - 1].execute_command(*args, **options)  # type: ignore[no-untyped-call]
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        """redis-py's pipeline, which chooses its server when it is executed."""
        pipeline: Any = super().pipeline(transaction, shard_hint)
        if not transaction:
            execute = pipeline.execute

            def split_execute(*args: Any, **options: Any) -> Any:
                pipeline.connection_pool = self._pool_for(pipeline.command_stack)
                return execute(*args, **options)

            pipeline.execute = split_execute
        return pipeline

    def _pool_for(self, commands: Sequence[Any]) -> Any:
        place = next(self._places) if _all_read(commands) else PRIMARY_PLACE
        return self.connection_pool if place == PRIMARY_PLACE else self.readers[place - 1].connection_pool

    def close(self) -> None:
        """Close all connections. Idempotent."""
        for reader in self.readers:
            reader.close()
        super().close()


class AsyncReadSplitClient(AsyncPrimaryClient):
    """The twin of `ReadSplitClient`."""

    readers: Sequence[redis.asyncio.Redis] = ()

    def split(self, read_from: ReadFrom, readers: Sequence[redis.asyncio.Redis]) -> None:
        """readers: clients of the replicas, which this client closes."""
        self.readers = readers
        self._places = places(read_from, len(readers))

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if is_read(args[0]) and (place := next(self._places)) != PRIMARY_PLACE:
            return await self.readers[place - 1].execute_command(*args, **options)  # type: ignore[no-untyped-call]
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        """redis-py's pipeline, which chooses its server when it is executed."""
        pipeline: Any = super().pipeline(transaction, shard_hint)
        if not transaction:
            execute = pipeline.execute

            async def split_execute(*args: Any, **options: Any) -> Any:
                pipeline.connection_pool = self._pool_for(pipeline.command_stack)
                return await execute(*args, **options)

            pipeline.execute = split_execute
        return pipeline

    def _pool_for(self, commands: Sequence[Any]) -> Any:
        place = next(self._places) if _all_read(commands) else PRIMARY_PLACE
        return self.connection_pool if place == PRIMARY_PLACE else self.readers[place - 1].connection_pool

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections. Idempotent."""
        for reader in self.readers:
            await reader.aclose()
        await super().aclose(close_connection_pool)
