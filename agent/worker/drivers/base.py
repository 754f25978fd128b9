"""What a driver has to bring: a host for its pools and workers. All else of a run is the same for all drivers.

A host is one client instance pool with its workers in this process. Nothing is opened, and nothing runs, by making one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from agent.worker.drivers.accounting import Worker
from agent.worker.metrics.connection_events import EventLog
from agent.worker.metrics.loop_usage import LoopRecord
from agent.worker.pools.thread_pools import Prewarmable


@dataclass(frozen=True, slots=True)
class Job:
    """What one worker is to do. stays: to the end of the span, also when its work is done before. watched: around all
    that it does; takes note of its end, and of what it raises."""

    name: str
    worker: Worker[Any]
    stays: bool
    watched: AbstractContextManager[None]


class Host(Protocol):
    """One client instance pool of this process, with its workers."""

    @property
    def pool(self) -> Any:
        """The client instance pool, as the driver's workers use it."""

    @property
    def logs(self) -> Sequence[EventLog]:
        """Where each client instance's connection events are found."""

    @property
    def loops(self) -> Sequence[LoopRecord]:
        """What the event loops of its workers leave behind, of each one that it has a part in: hosts that share a loop
        name the same record. Empty for threads. To be asked once, after `open`."""

    @property
    def client(self) -> Any:
        """One of the clients: all of a plan are alike."""

    @property
    def nodes(self) -> int:
        """How many servers each client instance may connect to. Known only after `open`."""

    @property
    def is_alive(self) -> bool:
        """Whether any worker still runs."""

    def open(self, between: Callable[[], object]) -> Sequence[Prewarmable]:
        """Make what is still to be made (clients of a cluster, which read its topology). Returns the client instances,
        for connections that are to be prewarmed. To be called once, before the start.

        between: called after each step; what it raises ends it. Raises TargetError.
        """

    def start(self, jobs: Iterable[Job]) -> None:
        """Start the workers; they wait for the start of the span by themselves. To be called once."""

    def cut(self) -> None:
        """End whatever any worker is waiting for; the run has been cancelled. Idempotent."""

    def close(self) -> None:
        """Close all client instances, and whatever was made to have them. Idempotent."""
