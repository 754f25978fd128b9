"""The plan's retry policy as redis-py's: how often, after how long, and on which errors."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from typing import Any

import redis
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
from common.redis_client.connections import ConnectionEvents

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
    # The second is what a socket raises while it connects.
    schema.RetryError.TIMEOUT: (redis.TimeoutError, socket.timeout),
    schema.RetryError.BUSY_LOADING: (redis.BusyLoadingError,),
    schema.RetryError.READ_ONLY: (redis.ReadOnlyError,),
    schema.RetryError.TRY_AGAIN: (TryAgainError,),
    schema.RetryError.CLUSTER_DOWN: (ClusterDownError,),
    schema.RetryError.MASTER_DOWN: (MasterDownError,),
}
# A cluster client of redis-py always tries again on these, having read the topology anew.
_OF_CLUSTERS: tuple[type[Exception], ...] = (ClusterDownError, SlotNotCoveredError)


def backoff_of(policy: schema.Retry) -> AbstractBackoff:
    """redis-py's backoff of this policy, unobserved."""
    return _BACKOFFS[policy.backoff](float(policy.base_s), float(policy.cap_s))


def errors_of(policy: schema.Retry) -> tuple[type[Exception], ...]:
    """Classes of errors that are tried again on."""
    return tuple(dict.fromkeys(kind for error in policy.errors for kind in _ERRORS[error]))


def cluster_errors_of(policy: schema.Retry) -> tuple[type[Exception], ...]:
    """The same for a cluster's client, which compares the class itself and no parent of it."""
    return tuple(dict.fromkeys((*errors_of(policy), *_OF_CLUSTERS)))


def observed_retry(policy: schema.Retry, events: ConnectionEvents, cancellation: Cancellation) -> Retry:
    """redis-py's retry object of this policy, which tells of each retry and ends when the run is cancelled."""
    return Retry(ObservedBackoff(backoff_of(policy), events, cancellation), policy.retries, errors_of(policy))


def no_retry() -> Retry:
    """One that tries nothing twice. Never left out: redis.Redis() without one has ten."""
    return Retry(NoBackoff(), 0)


class ObservedBackoff(AbstractBackoff):
    """Counts retries, and waits by itself instead of letting redis-py sleep, so that the wait can be cut short."""

    def __init__(self, inner: AbstractBackoff, events: ConnectionEvents, cancellation: Cancellation) -> None:
        self.inner = inner
        self._events = events
        self._cancellation = cancellation
        # redis-py resets it twice in every call, and so it is the inner one's own: no call of ours in between.
        self.reset = inner.reset  # type: ignore[method-assign]

    def __deepcopy__(self, memo: dict[int, Any]) -> ObservedBackoff:
        # Each connection gets a copy of its Retry: state of the policy is its own, events and cancellation are shared.
        return type(self)(copy.deepcopy(self.inner, memo), self._events, self._cancellation)

    def compute(self, failures: int) -> float:
        self._cancellation.check()
        self._events.retried(monotonic_ns())
        return self._pause(self.inner.compute(failures))

    def _pause(self, seconds: float) -> float:
        """Wait. Returns for how long redis-py is still to wait, in seconds."""
        self._cancellation.wait(seconds)
        return 0.0
