"""What every driver provides: a runner for each client instance pool. All else of a run is the same for all drivers.

Making a runner opens nothing and starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from agent.worker.metrics.connection_events import EventLog
from agent.worker.metrics.process_usage import LoopRecord
from agent.worker.metrics.rows import Outcomes, WorkerRecord
from agent.worker.metrics.wire_sizes import Measure
from agent.worker.pacing.pacer import Pacer, Span
from agent.worker.pools.prewarm import Prewarmable
from agent.worker.workload.reply_effects import Operation
from common.cancellation import Cancellation

P = TypeVar("P")

FAILED_PACE_NS = 1_000_000
"""Least time between the starts of a worker's operations while they fail without a reply, in a closed loop. Calls that
fail at once never wait for the network: without this pause, a few failing workers would take the whole interpreter, and
the other workers would starve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext(Generic[P]):
    """All that one worker thread, task or loop works with.

    pool: where its driver finds client instances. measures: by row of the mix, the bytes of a reply. batch: operations
    of a round trip. transaction: each batch is a MULTI/EXEC. Workers share span, pool, outcomes and cancellation.
    """

    span: Span
    pacer: Pacer
    pool: P
    operations: Iterator[Operation]
    record: WorkerRecord
    outcomes: Outcomes
    cancellation: Cancellation
    measures: Sequence[Measure]
    batch: int
    transaction: bool


@dataclass(frozen=True, slots=True)
class Job:
    """The task of one worker.

    stays: until the end of the span, even if its operations are used up before. watched: entered around everything that
    the worker does; notes its end and its errors.
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
        """Any client: all clients of a plan are alike."""

    @property
    def nodes(self) -> int:
        """How many servers each client instance may connect to. Known only after `open`."""

    @property
    def is_alive(self) -> bool:
        """Whether any worker still runs."""

    def open(self, between: Callable[[], object]) -> Sequence[Prewarmable]:
        """Build the clients that connect when they are built: a cluster's read its topology. Call it once, before the
        start. Returns the client instances, whose connections may be prewarmed.

        between: called after each step; its errors end `open`. Raises TargetError.
        """

    def start(self, jobs: Iterable[Job]) -> None:
        """Start the workers; each waits for the begin of the span. Call it once."""

    def cut(self) -> None:
        """End whatever any worker waits for, after the cancellation of the run. Idempotent."""

    def close(self) -> None:
        """Close all client instances, and all that was opened for them. Idempotent."""
