from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
from coordinator.analysis.aggregate import Aggregate
from coordinator.loop import Coordinator
from tests.support.protocol import (
    RUN_ID,
    RunBench,
    heartbeat,
    hello,
)


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
            (routing_id, codec.encode(Envelope(run_id=RUN_ID, incarnation=incarnation_of("web1"), message=message)))
            for routing_id, message in batch
        ]

    def send(self, routing_id: bytes, data: bytes) -> None:
        self.sent.append((routing_id, codec.decode_from_coordinator(data).message))


OTHERS: dict[str, Any] = dict.fromkeys(
    ("signals", "local_agents", "view", "open_journal", "read_counts", "clean", "explain")
)


def called_off(link: FakeLink) -> list[tuple[bytes, Any]]:
    """What is sent to the agent web1 by a coordinator that cannot begin its run."""
    bench = RunBench()
    bench.hello("web1")
    Coordinator(bench.run, Aggregate(), listener=link, **OTHERS)._call_off(link, 5)  # type: ignore[arg-type]
    return link.sent


def test_an_agent_that_does_not_seem_to_know_is_dismissed_again_on_its_new_connection() -> None:
    back = hello("web1", secret="web1", state=AgentState.RUNNING, run_id=RUN_ID)
    link = FakeLink([(b"anew", back)], [(b"anew", Bye(reason="dismissed"))], [])
    assert called_off(link) == [(b"web1", Dismiss(exit_code=5)), (b"anew", Dismiss(exit_code=5))]


def test_a_goodbye_from_a_connection_that_is_not_the_agents_is_no_answer() -> None:
    link = FakeLink([(b"liar", Bye(reason="dismissed"))], [(b"web1", heartbeat(AgentState.RUNNING))], [])
    assert called_off(link)[:2] == [(b"web1", Dismiss(exit_code=5))] * 2


def test_an_agent_that_answers_is_sent_nothing_more() -> None:
    assert called_off(FakeLink([(b"web1", heartbeat(AgentState.IDLE))])) == [(b"web1", Dismiss(exit_code=5))]


def stopped(link: FakeLink) -> list[tuple[bytes, Any]]:
    """What is sent to the agent web1, at work, by a coordinator that cannot go on."""
    bench = RunBench()
    bench.running("web1")
    coordinator = Coordinator(bench.run, Aggregate(), listener=link, **OTHERS)  # type: ignore[arg-type]
    coordinator._stop_load(link, "runs/r-1/journal: cannot write the journal: No space left on device")  # type: ignore[arg-type]
    return link.sent


def test_the_load_is_stopped_when_nothing_can_be_recorded_and_an_agent_that_goes_on_is_stopped_again() -> None:
    stop = Stop(
        drain=True,
        reason="the coordinator failed: runs/r-1/journal: cannot write the journal: No space left on device",
    )
    back = hello("web1", secret="web1", state=AgentState.RUNNING, run_id=RUN_ID)
    link = FakeLink([(b"anew", back)], [(b"anew", heartbeat(AgentState.DRAINING))], [])
    assert stopped(link) == [(b"web1", stop), (b"anew", stop)]
