"""The plan's retry policy as redis.asyncio's."""

from __future__ import annotations

from typing import Any

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from common.cancellation import Cancellation
from common.plan import schema
from common.redis_client.connections import ConnectionEvents
from common.redis_client.retry_policy import ObservedBackoff, backoff_of, errors_of


class _CountedBackoff(ObservedBackoff):
    """Counts retries, and leaves the wait to redis-py: it is asyncio's, and ends when its task is cancelled."""

    def _pause(self, seconds: float) -> float:
        return seconds


def observed_async_retry(policy: schema.Retry, events: ConnectionEvents, cancellation: Cancellation) -> Retry:
    """redis.asyncio's retry object of this policy, which tells of each retry and ends when the run is cancelled."""
    errors: Any = errors_of(policy)  # TimeoutError of Python's own among them, which its type does not foresee
    return Retry(_CountedBackoff(backoff_of(policy), events, cancellation), policy.retries, errors)


def no_async_retry() -> Retry:
    """One that tries nothing twice."""
    return Retry(NoBackoff(), 0)
