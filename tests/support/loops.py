"""Event loops in tests: let the others have their turn, without waiting for time to pass."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any


class OthersTurn:
    """Awaited, it lets everybody else on the loop go on once."""

    def __await__(self) -> Iterator[None]:
        yield


async def begun(what: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has come as far as it can."""
    task = asyncio.create_task(what)
    for _ in range(3):
        await OthersTurn()
    return task
