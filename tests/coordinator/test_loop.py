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
    FinalAck,
    Stop,
    incarnation_of,
)
from coordinator.analysis.aggregate import Aggregate
from coordinator.loop import Coordinator
from tests.support.protocol import (
    RUN_ID,
    RunBench,
    final,
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


def seen_off(link: FakeLink, bench: RunBench | None = None) -> list[tuple[bytes, Any]]:
    """What is sent while the agent web1 is seen off."""
    if bench is None:
        bench = RunBench()
        bench.hello("web1")
    Coordinator(bench.run, Aggregate(), listener=link, **OTHERS)._see_off(link, 5)  # type: ignore[arg-type]
    return link.sent


def test_an_agent_that_speaks_as_if_it_had_not_heard_is_dismissed_again_where_it_speaks_from() -> None:
    back = hello("web1", secret="web1", state=AgentState.RUNNING, run_id=RUN_ID)
    link = FakeLink([(b"anew", back)], [(b"anew", Bye(reason="dismissed"))], [])
    assert seen_off(link) == [(b"anew", Dismiss(exit_code=5))]


def test_an_agent_that_only_its_incarnation_speaks_for_is_still_waited_for() -> None:
    link = FakeLink([(b"liar", Bye(reason="dismissed"))], [(b"web1", heartbeat(AgentState.RUNNING))], [])
    assert seen_off(link)[:1] == [(b"web1", Dismiss(exit_code=5))]


def test_an_agent_that_answers_is_told_nothing_more() -> None:
    assert seen_off(FakeLink([(b"web1", heartbeat(AgentState.IDLE))])) == []


def stopped(link: FakeLink) -> list[tuple[bytes, Any]]:
    """What is sent to the agent web1, at work, by a coordinator that cannot go on."""
    bench = RunBench()
    bench.running("web1")
    coordinator = Coordinator(bench.run, Aggregate(), listener=link, **OTHERS)  # type: ignore[arg-type]
    coordinator._stop_load(link, "runs/r-1/journal: cannot write the journal: No space left on device")  # type: ignore[arg-type]
    return link.sent


def test_the_load_is_stopped_when_nothing_can_be_recorded_and_an_agent_that_goes_on_is_told_again() -> None:
    stop = Stop(
        drain=True,
        reason="the coordinator failed: runs/r-1/journal: cannot write the journal: No space left on device",
    )
    back = hello("web1", secret="web1", state=AgentState.RUNNING, run_id=RUN_ID)
    link = FakeLink([(b"anew", back)], [(b"anew", heartbeat(AgentState.DRAINING))], [])
    assert stopped(link) == [(b"web1", stop), (b"anew", stop)]


def test_an_agent_that_comes_back_after_its_last_results_hears_that_they_are_safe_before_it_is_dismissed() -> None:
    back = hello("web1", secret="web1", connection=2, state=AgentState.DONE, run_id=RUN_ID)
    link = FakeLink([(b"anew", back)], [(b"anew", Bye(reason="served"))], [])
    bench = RunBench()
    bench.running("web1")
    bench.says("web1", final(0))
    assert seen_off(link, bench) == [(b"anew", FinalAck()), (b"anew", Dismiss(exit_code=5))]
