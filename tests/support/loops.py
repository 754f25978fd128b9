"""Event loops in tests: let other tasks run without waiting for time to pass."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any


class OthersTurn:
    """Awaiting it lets all other tasks of the loop run once."""

    def __await__(self) -> Iterator[None]:
        yield


async def begun(what: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start a task and let it run until it waits."""
    task = asyncio.create_task(what)
    for _ in range(3):
        await OthersTurn()
    return task
