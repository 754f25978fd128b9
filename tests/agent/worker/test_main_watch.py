"""What the main thread of a worker process does while the load runs."""

from __future__ import annotations

from typing import Any

import pytest

from agent.worker.collector import Collector
from agent.worker.main import _watch
from agent.worker.pacer import NEVER_NS, Span
from agent.worker.recorder import Outcomes
from agent.worker.self_watch import SelfWatch
from common.cgroup import QuotaReading
from common.messages import Assignment, WorkerMetrics, WorkerStop
from common.plan.schema import Load, Plan
from common.plan.timeline import timeline
from common.units import NS_PER_S, Seconds


def test_an_order_is_heard_also_where_each_collection_takes_longer_than_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As among hundreds of busy threads, for which the interpreter's lock is the limit."""
    now_ns = 10**15
    span = Span(now_ns, NEVER_NS)

    class Slow:
        def look(self) -> None: ...

        def woke(self, _: int) -> None: ...

        def talked(self) -> None: ...

        def collect(self, _: int) -> tuple[()]:
            nonlocal now_ns
            now_ns += 1500 * 10**6
            return ()

    class Told:
        def __init__(self) -> None:
            self.sent = 0

        def send(self, _: object) -> None:
            self.sent += 1
            assert self.sent < 10, "nobody listens"

        def receive(self, timeout_s: float) -> WorkerStop | None:
            nonlocal now_ns
            now_ns += round(timeout_s * 10**9)
            return WorkerStop(drain=True) if self.sent else None

    class Running:
        is_listening, crash = False, ""

        @property
        def is_alive(self) -> bool:
            return span.end_ns == NEVER_NS

    monkeypatch.setattr("agent.worker.main.monotonic_ns", lambda: now_ns)
    assignment = Assignment(plan=Plan(), pools=(), threads_total=0)
    pipe: Any = Told()
    running: Any = Running()
    slow: Any = Slow()
    assert _watch(pipe, running, span, slow, assignment)
    assert pipe.sent == 1


def test_a_process_that_is_stopped_while_it_waits_stalls_and_one_whose_agent_does_not_listen_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    t0_ns = now_ns = 10**15
    end_ns = t0_ns + 10 * NS_PER_S

    class Agent:
        """Takes two seconds to read what is said of the first second, and stops the process for three at 5 s."""

        def __init__(self) -> None:
            self.told: list[WorkerMetrics] = []

        def send(self, message: WorkerMetrics) -> None:
            nonlocal now_ns
            self.told.append(message)
            now_ns += 0 if message.through else 2 * NS_PER_S

        def receive(self, timeout_s: float) -> None:
            nonlocal now_ns
            before_ns, now_ns = now_ns, now_ns + round(timeout_s * NS_PER_S)
            if before_ns < t0_ns + 5 * NS_PER_S <= now_ns:
                now_ns += 3 * NS_PER_S

    class Running:
        is_listening, crash = False, ""

        @property
        def is_alive(self) -> bool:
            return now_ns < end_ns

        def finish_listening(self, _: int) -> None: ...

    monkeypatch.setattr("agent.worker.main.monotonic_ns", lambda: now_ns)
    line = timeline(Load(duration_s=Seconds(10)))
    watch = SelfWatch([], t0_ns, line, lambda: now_ns, lambda: 0, QuotaReading)
    collector = Collector([], ("GET",), Outcomes(), t0_ns, line, watch)
    agent: Any = Agent()
    running: Any = Running()
    assert _watch(agent, running, Span(t0_ns, end_ns), collector, Assignment(plan=Plan(), pools=(), threads_total=0))
    held = [part.generator.hold_ups for message in agent.told for part in message.intervals]
    assert [one.stalled_ns for one in held if one is not None] == [
        *[0] * 5,
        *[NS_PER_S] * 3,
        0,
    ]
