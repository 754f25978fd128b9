from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common import codec
from common.messages import AgentMessage, AgentState, Bye, Dismiss, Envelope, Stop
from coordinator.aggregate import Aggregate
from coordinator.coordinator import Coordinator
from tests.support.protocol import RUN_ID, RunBench, heartbeat


class FakeLink:
    """Poller and listener in one: a batch of messages a look, and what was sent, by routing id."""

    def __init__(self, *batches: Sequence[tuple[bytes, AgentMessage]]) -> None:
        self._batches = list(batches)
        self.sent: list[tuple[bytes, Any]] = []

    def wait(self, _: float) -> None:
        pass

    def receive(self) -> list[tuple[bytes, bytes]]:
        batch = self._batches.pop(0) if self._batches else ()
        return [
            (routing_id, codec.encode(Envelope(run_id=RUN_ID, incarnation="web1", message=message)))
            for routing_id, message in batch
        ]

    def send(self, routing_id: bytes, data: bytes) -> None:
        self.sent.append((routing_id, codec.decode_from_coordinator(data).message))


OTHERS: dict[str, Any] = dict.fromkeys(
    ("metrics", "signals", "local_agents", "view", "open_journal", "read_counts", "clean", "explain")
)


def seen_off(link: FakeLink) -> list[tuple[bytes, Any]]:
    """What is sent while the agent web1 is seen off."""
    bench = RunBench()
    bench.hello("web1")
    Coordinator(bench.run, Aggregate(), control=link, **OTHERS)._see_off(link, 5)  # type: ignore[arg-type]
    return link.sent


def test_an_agent_that_speaks_as_if_it_had_not_heard_is_dismissed_again_where_it_speaks_from() -> None:
    link = FakeLink([(b"anew", heartbeat(AgentState.RUNNING))], [(b"anew", Bye(reason="dismissed"))], [])
    assert seen_off(link) == [(b"anew", Dismiss(exit_code=5))]


def test_an_agent_that_answers_is_told_nothing_more() -> None:
    assert seen_off(FakeLink([(b"web1", heartbeat(AgentState.IDLE))])) == []


def stopped(link: FakeLink) -> list[tuple[bytes, Any]]:
    """What is sent to the agent web1, at work, by a coordinator that cannot go on."""
    bench = RunBench()
    bench.running("web1")
    coordinator = Coordinator(bench.run, Aggregate(), control=link, **OTHERS)  # type: ignore[arg-type]
    coordinator._stop_load(link, "runs/r-1/journal: cannot write the journal: No space left on device")  # type: ignore[arg-type]
    return link.sent


def test_the_load_is_stopped_when_nothing_can_be_recorded_and_an_agent_that_goes_on_is_told_again() -> None:
    stop = Stop(
        drain=True,
        reason="the coordinator failed: runs/r-1/journal: cannot write the journal: No space left on device",
    )
    link = FakeLink([(b"anew", heartbeat(AgentState.RUNNING))], [(b"anew", heartbeat(AgentState.DRAINING))], [])
    assert stopped(link) == [(b"web1", stop), (b"anew", stop)]
