"""The interface of a driver: a runner for each client instance pool. The rest of a run is the same for all drivers.

Making a runner opens no connection and starts no thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from agent.worker.metrics.connection_events import EventLog
from agent.worker.metrics.hits import HitCounter
from agent.worker.metrics.outcomes import Outcomes
from agent.worker.metrics.process_usage import LoopRecord
from agent.worker.metrics.rows import WorkerRecord
from agent.worker.metrics.wire_sizes import Measure
from agent.worker.pacing.pacer import Pacer, Span
from agent.worker.pools.instance_queue import InstanceQueue
from agent.worker.pools.prewarm import Prewarmable
from agent.worker.workload.reply_effects import Operation
from common.cancellation import Cancellation

P = TypeVar("P")
Q = TypeVar("Q", bound=InstanceQueue[Any])

FAILED_PACE_NS = 1_000_000
"""In a closed loop, the least time between the starts of a worker's operations while they fail without a reply. Calls
that fail at once never wait for the network: without this limit, a few failing workers would keep the interpreter busy,
and the other workers would starve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext(Generic[P]):
    """Everything that one worker thread, task or loop uses.

    pool: lends client instances. measures: by row of the mix, a function that returns the bytes of a reply. counters:
    by row, a function that returns the hits and misses of a reply; None for commands whose replies do not show them.
    batch: operations per round trip. transaction: each batch is a MULTI/EXEC. Workers share span, pool, outcomes and
    cancellation.
    """

    span: Span
    pacer: Pacer
    pool: P
    operations: Iterator[Operation]
    record: WorkerRecord
    outcomes: Outcomes
    cancellation: Cancellation
    measures: Sequence[Measure]
    counters: Sequence[HitCounter | None]
    batch: int
    transaction: bool


@dataclass(frozen=True, slots=True)
class Job:
    """The task of one worker.

    stays: the worker stays until the end of the span, even if its operations end earlier. watched: a context manager
    around all work of the worker; it records the worker's end and its errors.
    """

    name: str
    context: WorkerContext[Any]
    stays: bool
    watched: AbstractContextManager[None]


class PoolRunner(Protocol):
    """Runs the workers of one client instance pool of this process."""

    @property
    def pool(self) -> Any:
        """The client instance pool, as the driver's workers use it."""

    @property
    def logs(self) -> Sequence[EventLog]:
        """The connection events of each client instance."""

    @property
    def loops(self) -> Sequence[LoopRecord]:
        """The records of the event loops that the workers run on; runners that share a loop return the same record.
        Empty for threads. Ask once, after `open`."""

    @property
    def client(self) -> Any:
        """Any of the clients: all clients of a plan have the same settings."""

    @property
    def nodes(self) -> int:
        """How many servers each client instance may connect to. Call it after `open`."""

    @property
    def is_alive(self) -> bool:
        """Whether any worker still runs."""

    def open(self, between: Callable[[], object]) -> Sequence[Prewarmable]:
        """Build the clients that connect when they are built: cluster clients, which read the topology. Call it once,
        before the start. Returns the client instances, whose connections may be prewarmed.

        between: called after each step; an error that it raises ends `open`. Raises TargetError.
        """

    def start(self, jobs: Iterable[Job]) -> None:
        """Start the workers. Each waits for the beginning of the span. Call it once."""

    def cut(self) -> None:
        """End all waits of workers. Call it after the run was cancelled. Idempotent."""

    def close(self) -> None:
        """Close all client instances, and everything that was opened for them. Idempotent."""


class InstancePoolRunner(Generic[Q]):
    """The parts of a `PoolRunner` that threads and tasks share: both lend client instances of redis-py."""

    def __init__(self, pool: Q) -> None:
        self.pool = pool

    @property
    def logs(self) -> Sequence[EventLog]:
        return [instance.events for instance in self.pool.instances]

    @property
    def client(self) -> Any:
        return self.pool.instances[0].client
