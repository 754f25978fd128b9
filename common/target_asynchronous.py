"""plan.target -> redis.asyncio clients: the same settings, the same events, on an event loop.

Facts about redis.asyncio that this stands on, beside those of redis-py, are held by a contract test
(tests/common/test_target_asynchronous.py):
- `_connect` opens one socket; `on_connect_check_health` is the handshake; `disconnect` is the only way out, may come
  twice, and is awaited while the error that caused it is being handled;
- `Backoff.compute` is called exactly once for every retry, and the wait that follows is a plain `asyncio.sleep`: like
  everything else that waits, it ends when its task is cancelled;
- a call that is cancelled closes its connection and gives it back to its TCP pool.
"""

from __future__ import annotations

import copy
import sys
from typing import Any, TypeAlias

import redis
import redis.asyncio
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import AbstractBackoff

from common.clock import monotonic_ns
from common.lifeline import Lifeline
from common.plan import schema
from common.target import _BACKOFFS, ConnectionEvents, _connection_arguments, _drop_cause

AsyncClient: TypeAlias = redis.asyncio.Redis
AsyncConnection: TypeAlias = AbstractConnection


class _Observed(AbstractConnection):
    """Tells of the life of the connection that it is mixed into. Costs nothing per operation."""

    def __init__(self, *, events: ConnectionEvents, lifeline: Lifeline, **arguments: Any) -> None:
        self._events = events
        self._lifeline = lifeline
        self._is_up = False
        self._lost_ns: int | None = None
        super().__init__(**arguments)

    async def _connect(self) -> None:
        self._lifeline.check()
        try:
            await super()._connect()  # type: ignore[safe-super,no-untyped-call]
        except OSError:  # a timeout among them
            self._events.attempt_failed(monotonic_ns())
            raise

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        try:
            await self._shake_hands(check_health)
        except redis.RedisError as error:
            self._events.attempt_failed(monotonic_ns())
            # It may reach the caller of a command, who must not take it for a reply to that.
            error.in_handshake = True  # type: ignore[attr-defined]
            raise
        self._events.opened(monotonic_ns(), self._lost_ns)
        self._is_up = True
        self._lost_ns = None

    async def _shake_hands(self, check_health: bool) -> None:
        try:
            await super().on_connect_check_health(check_health=check_health)
        except AttributeError as error:
            # redis-py takes the reply to HELLO for a map without looking.
            raise redis.InvalidResponse("HELLO was not answered with a map") from error

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        if self._is_up:
            self._is_up = False
            error = sys.exc_info()[1]
            if error is None or self._lifeline.is_cut:
                self._events.closed(monotonic_ns())
            else:
                self._lost_ns = monotonic_ns()
                self._events.dropped(self._lost_ns, _drop_cause(error))
        await super().disconnect(*args, **kwargs)


class AsyncObservedConnection(_Observed, redis.asyncio.Connection):
    """Over TCP."""


class _CountedBackoff(AbstractBackoff):
    """Counts retries, and makes none once the lifeline is cut."""

    def __init__(self, inner: AbstractBackoff, events: ConnectionEvents, lifeline: Lifeline) -> None:
        self._inner = inner
        self._events = events
        self._lifeline = lifeline
        self.reset = inner.reset  # type: ignore[method-assign]

    def __deepcopy__(self, memo: dict[int, Any]) -> _CountedBackoff:
        return _CountedBackoff(copy.deepcopy(self._inner, memo), self._events, self._lifeline)

    def compute(self, failures: int) -> float:
        self._lifeline.check()
        self._events.retried(monotonic_ns())
        return float(self._inner.compute(failures))


def build_async_client(
    target: schema.Target, *, max_connections: int, events: ConnectionEvents, lifeline: Lifeline
) -> AsyncClient:
    """A client with a TCP pool of its own and the plan's retry policy, for whatever loop uses it first. Opens nothing
    yet, and needs no loop for that. Raises PlanError."""
    policy = target.retry
    backoff = _BACKOFFS[policy.backoff](float(policy.base_s), float(policy.cap_s))
    pool: redis.asyncio.ConnectionPool = redis.asyncio.ConnectionPool(
        connection_class=AsyncObservedConnection,
        max_connections=max_connections,
        retry=Retry(_CountedBackoff(backoff, events, lifeline), policy.retries),
        events=events,
        lifeline=lifeline,
        **_connection_arguments(target),
    )
    return redis.asyncio.Redis.from_pool(pool)
