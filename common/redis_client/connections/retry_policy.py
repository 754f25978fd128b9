"""The plan's retry policy as redis-py's Retry, for threads and asyncio: number of retries, backoff, and errors."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio.retry
from redis.backoff import (
    AbstractBackoff,
    ConstantBackoff,
    DecorrelatedJitterBackoff,
    EqualJitterBackoff,
    ExponentialBackoff,
    FullJitterBackoff,
    NoBackoff,
)
from redis.exceptions import ClusterDownError, MasterDownError, SlotNotCoveredError, TryAgainError
from redis.retry import Retry

from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.plan import schema
from common.redis_client.connections.connection_tracking import ConnectionEvents

_BACKOFFS: dict[schema.BackoffKind, Callable[[float, float], AbstractBackoff]] = {
    schema.BackoffKind.NONE: lambda _base, _cap: NoBackoff(),
    schema.BackoffKind.CONSTANT: lambda base, _cap: ConstantBackoff(base),
    schema.BackoffKind.EXPONENTIAL: lambda base, cap: ExponentialBackoff(cap, base),
    schema.BackoffKind.FULL_JITTER: lambda base, cap: FullJitterBackoff(cap, base),
    schema.BackoffKind.EQUAL_JITTER: lambda base, cap: EqualJitterBackoff(cap, base),
    schema.BackoffKind.DECORRELATED_JITTER: lambda base, cap: DecorrelatedJitterBackoff(cap, base),
}

_ERRORS: dict[schema.RetryError, tuple[type[Exception], ...]] = {
    schema.RetryError.CONNECTION: (redis.ConnectionError,),
    # A socket raises the second error while it connects.
    schema.RetryError.TIMEOUT: (redis.TimeoutError, socket.timeout),
    schema.RetryError.BUSY_LOADING: (redis.BusyLoadingError,),
    schema.RetryError.READ_ONLY: (redis.ReadOnlyError,),
    schema.RetryError.TRY_AGAIN: (TryAgainError,),
    schema.RetryError.CLUSTER_DOWN: (ClusterDownError,),
    schema.RetryError.MASTER_DOWN: (MasterDownError,),
}
# redis-py's cluster clients always retry on these, after reading the topology.
_OF_CLUSTERS: tuple[type[Exception], ...] = (ClusterDownError, SlotNotCoveredError)


def errors_of(policy: schema.Retry) -> tuple[type[Exception], ...]:
    """Classes of errors on which the policy retries."""
    return tuple(dict.fromkeys(kind for error in policy.errors for kind in _ERRORS[error]))


def cluster_errors_of(policy: schema.Retry) -> tuple[type[Exception], ...]:
    """The same for a cluster client, which compares the exact class."""
    return tuple(dict.fromkeys((*errors_of(policy), *_OF_CLUSTERS)))


def observed_retry(policy: schema.Retry, events: ConnectionEvents, cancellation: Cancellation) -> Retry:
    """redis-py's Retry for threads. It reports each retry, and ends when the run is cancelled."""
    return Retry(ObservedBackoff(_backoff_of(policy), events, cancellation), policy.retries, errors_of(policy))


def observed_async_retry(
    policy: schema.Retry, events: ConnectionEvents, cancellation: Cancellation
) -> redis.asyncio.retry.Retry:
    """redis.asyncio's Retry, the twin of `observed_retry`."""
    errors: Any = errors_of(policy)  # Python's own TimeoutError is missing in redis-py's type
    backoff = AsyncObservedBackoff(_backoff_of(policy), events, cancellation)
    return redis.asyncio.retry.Retry(backoff, policy.retries, errors)


def no_retry() -> Retry:
    """A Retry without retries. Always pass one: redis.Redis() retries ten times by default."""
    return Retry(NoBackoff(), 0)


def no_async_retry() -> redis.asyncio.retry.Retry:
    """The twin of `no_retry`."""
    return redis.asyncio.retry.Retry(NoBackoff(), 0)


def _backoff_of(policy: schema.Retry) -> AbstractBackoff:
    return _BACKOFFS[policy.backoff](float(policy.base_s), float(policy.cap_s))


class ObservedBackoff(AbstractBackoff):
    """Reports retries, and waits itself instead of redis-py, so that cancellation ends the wait."""

    def __init__(self, inner: AbstractBackoff, events: ConnectionEvents, cancellation: Cancellation) -> None:
        self.inner = inner
        self._events = events
        self._cancellation = cancellation
        # redis-py calls `reset` twice for every command. For speed, it calls the inner backoff's directly.
        self.reset = inner.reset  # type: ignore[method-assign]

    def __deepcopy__(self, memo: dict[int, Any]) -> ObservedBackoff:
        # Each connection gets a copy of its Retry, with its own state, but with the same events and cancellation.
        return type(self)(copy.deepcopy(self.inner, memo), self._events, self._cancellation)

    def compute(self, failures: int) -> float:
        self._cancellation.check()
        self._events.retried(monotonic_ns())
        return self._pause(self.inner.compute(failures))

    def _pause(self, seconds: float) -> float:
        """Wait. Returns how long redis-py still has to wait, in seconds."""
        self._cancellation.wait(seconds)
        return 0.0


class AsyncObservedBackoff(ObservedBackoff):
    """Leaves the wait to redis-py, which waits by `asyncio.sleep`. It ends when its task is cancelled."""

    def _pause(self, seconds: float) -> float:
        return seconds
