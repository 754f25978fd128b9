from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from common.clock import monotonic_ns
from common.protocol import codec
from common.protocol.messages import (
    AgentMessage,
    AgentState,
    Bye,
    Dismiss,
    Envelope,
    Stop,
    incarnation_of,
)
from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.loop import Coordinator
from tests.support.protocol import (
    RUN_ID,
    RunBench,
    heartbeat,
    hello,
)


class FakeLink:
    """Poller and listener in one. batches: the messages of each receive. sent: messages with their routing id."""

    def __init__(self, *batches: Sequence[tuple[bytes, AgentMessage]]) -> None:
        self._batches = list(batches)
        self.now_ns = monotonic_ns()
        self.sent: list[tuple[bytes, Any]] = []

    def wait(self, seconds: float) -> None:
        self.now_ns += round(seconds * NS_PER_S)

    def receive(self) -> list[tuple[bytes, bytes]]:
        batch = self._batches.pop(0) if self._batches else ()
        return [
            (routing_id, codec.encode(Envelope(run_id=RUN_ID, incarnation=incarnation_of("web1"), message=message)))
            for routing_id, message in batch
        ]

    def send(self, routing_id: bytes, data: bytes) -> None:
        self.sent.append((routing_id, codec.decode_from_coordinator(data).message))


OTHERS: dict[str, Any] = dict.fromkeys(
    ("signals", "local_agents", "view", "open_journal", "read_counts", "clean", "explain")
)


def called_off(link: FakeLink) -> list[tuple[bytes, Any]]:
    """The messages to the agent web1 of a coordinator that cannot start its run."""
    bench = RunBench()
    bench.hello("web1")
    coordinator = Coordinator(bench.run, Aggregate(), listener=link, **OTHERS)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coordinator.loop.monotonic_ns", lambda: link.now_ns)
        coordinator._cancel(link, 5)  # type: ignore[arg-type]
    return link.sent


def test_an_agent_that_reconnects_is_dismissed_again() -> None:
    back = hello("web1", secret="web1", state=AgentState.RUNNING, run_id=RUN_ID)
    link = FakeLink([(b"web1-again", back)], [(b"web1-again", Bye(reason="dismissed"))], [])
    assert called_off(link) == [(b"web1", Dismiss(exit_code=5)), (b"web1-again", Dismiss(exit_code=5))]


def test_a_goodbye_from_another_connection_does_not_count() -> None:
    link = FakeLink([(b"liar", Bye(reason="dismissed"))], [(b"web1", heartbeat(AgentState.RUNNING))], [])
    assert called_off(link)[:2] == [(b"web1", Dismiss(exit_code=5))] * 2


def test_an_agent_that_answers_is_not_dismissed_again() -> None:
    assert called_off(FakeLink([(b"web1", heartbeat(AgentState.IDLE))])) == [(b"web1", Dismiss(exit_code=5))]


def stopped(link: FakeLink) -> list[tuple[bytes, Any]]:
    """The messages to the running agent web1 of a coordinator that failed."""
    bench = RunBench()
    bench.running("web1")
    coordinator = Coordinator(bench.run, Aggregate(), listener=link, **OTHERS)  # type: ignore[arg-type]
    coordinator._stop_load(link, "runs/r-1/journal: cannot write the journal: No space left on device")  # type: ignore[arg-type]
    return link.sent


def test_a_failed_coordinator_stops_the_load_and_repeats_the_stop() -> None:
    stop = Stop(
        drain=True,
        reason="the coordinator failed: runs/r-1/journal: cannot write the journal: No space left on device",
    )
    back = hello("web1", secret="web1", state=AgentState.RUNNING, run_id=RUN_ID)
    link = FakeLink([(b"web1-again", back)], [(b"web1-again", heartbeat(AgentState.DRAINING))], [])
    assert stopped(link) == [(b"web1", stop), (b"web1-again", stop)]
