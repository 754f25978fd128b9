"""The main thread of a worker process while the load runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.worker.metrics.collector import Collector
from agent.worker.metrics.outcomes import Outcomes
from agent.worker.metrics.process_usage import ProcessUsage
from agent.worker.pacing.pacer import NEVER_NS, Span
from agent.worker.process import _supervise_load
from common.cgroup import QuotaReading
from common.plan.schema import Load, Plan
from common.plan.timeline import timeline
from common.protocol.messages import Assignment, WorkerMetrics, WorkerStop
from common.units import NS_PER_S, Seconds

EMPTY = Assignment(plan=Plan(), pools=(), threads_total=0)


def test_a_worker_process_reads_orders_even_if_each_collection_takes_over_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Collecting is this slow among hundreds of busy threads that share the interpreter lock."""
    now_ns = 10**15
    span = Span(now_ns, NEVER_NS)

    class Slow:
        def look(self) -> None: ...

        def woke(self, _: int) -> None: ...

        def reported(self) -> None: ...

        def collect(self, _: int) -> tuple[()]:
            nonlocal now_ns
            now_ns += 1500 * 10**6
            return ()

    class Told:
        is_clear, lease_is_over = True, False

        def __init__(self) -> None:
            self.sent = 0

        def send(self, _: object) -> None:
            self.sent += 1
            assert self.sent < 10, "the order is not read"

        def receive(self, timeout_s: float) -> WorkerStop | None:
            nonlocal now_ns
            now_ns += round(timeout_s * 10**9)
            return WorkerStop(drain=True) if self.sent else None

    class Running:
        is_listening, crash = False, ""

        @property
        def is_alive(self) -> bool:
            return span.end_ns == NEVER_NS

    monkeypatch.setattr("agent.worker.process.monotonic_ns", lambda: now_ns)
    assignment = Assignment(plan=Plan(), pools=(), threads_total=0)
    pipe: Any = Told()
    running: Any = Running()
    slow: Any = Slow()
    assert _supervise_load(pipe, running, span, slow, assignment, 0) == (True, False)
    assert pipe.sent == 1


def test_a_paused_process_stalls_and_a_process_with_a_slow_agent_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    t0_ns = now_ns = 10**15
    end_ns = t0_ns + 10 * NS_PER_S

    class Agent:
        """Takes two seconds to read the first report, and pauses the process for three seconds at 5 s."""

        is_clear, lease_is_over = True, False

        def __init__(self) -> None:
            self.reports: list[WorkerMetrics] = []

        def send(self, message: WorkerMetrics) -> None:
            nonlocal now_ns
            self.reports.append(message)
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

    monkeypatch.setattr("agent.worker.process.monotonic_ns", lambda: now_ns)
    line = timeline(Load(duration_s=Seconds(10)))
    watch = ProcessUsage([], t0_ns, line, lambda: now_ns, lambda: 0, QuotaReading)
    collector = Collector([], ("GET",), Outcomes(), t0_ns, line, watch)
    agent: Any = Agent()
    running: Any = Running()
    assignment = Assignment(plan=Plan(), pools=(), threads_total=0)
    assert _supervise_load(agent, running, Span(t0_ns, end_ns), collector, assignment, 0) == (True, False)
    held = [part.generator.delays for message in agent.reports for part in message.intervals]
    assert [one.stalled_ns for one in held if one is not None] == [
        *[0] * 5,
        *[NS_PER_S] * 3,
        0,
    ]


@dataclass
class StoppedAgent:
    """An agent that renews a lease for `lease_ns` until `stops_ns`, and then sends and reads nothing until `wakes_ns`.
    Its worker process is paused from `sleeps_ns` to `sleeps_until_ns`."""

    now_ns: int
    stops_ns: int
    lease_ns: int = 4 * NS_PER_S
    wakes_ns: int = NEVER_NS
    sleeps_ns: int = NEVER_NS
    sleeps_until_ns: int = 0
    lease_ends_ns: int = 0
    reports: list[WorkerMetrics] = field(default_factory=list)

    @property
    def is_clear(self) -> bool:
        return self.now_ns < self.stops_ns or self.now_ns >= self.wakes_ns

    @property
    def lease_is_over(self) -> bool:
        return self.now_ns >= self.lease_ends_ns

    def send(self, message: WorkerMetrics) -> None:
        assert self.is_clear, "the main thread would wait"
        self.reports.append(message)

    def receive(self, timeout_s: float) -> None:
        assert timeout_s > 0 or self.is_clear, "the main thread spins"
        self.now_ns += round(timeout_s * NS_PER_S)
        if self.sleeps_ns <= self.now_ns < self.sleeps_until_ns:
            self.now_ns = self.sleeps_until_ns
        if self.now_ns < self.stops_ns:
            self.lease_ends_ns = self.now_ns + self.lease_ns


class FencedLoad:
    """A load that ends `drain_ns` after its span."""

    is_listening, crash = False, ""

    def __init__(self, agent: StoppedAgent, span: Span, drain_ns: int = 0) -> None:
        self._agent, self._span, self._drain_ns = agent, span, drain_ns
        self.was_cut = False

    @property
    def is_alive(self) -> bool:
        return not self.was_cut and self._agent.now_ns < self._span.end_ns + self._drain_ns

    def cut(self) -> None:
        self.was_cut = True

    def finish_listening(self, _: int) -> None: ...


class NoCollector:
    def look(self) -> None: ...

    def woke(self, _: int) -> None: ...

    def reported(self) -> None: ...

    def collect(self, _: int) -> tuple[()]:
        return ()


T0_NS = 10**15


def watched(
    monkeypatch: pytest.MonkeyPatch, agent: StoppedAgent, *, end_ns: int = NEVER_NS, drain_ns: int = 0
) -> tuple[Span, FencedLoad, tuple[bool, bool]]:
    """Watch a load to its end. Returns its span, the load, and the result of the watch."""
    monkeypatch.setattr("agent.worker.process.monotonic_ns", lambda: agent.now_ns)
    span = Span(T0_NS, end_ns)
    load = FencedLoad(agent, span, drain_ns)
    pipe: Any = agent
    run: Any = load
    collector: Any = NoCollector()
    return span, load, _supervise_load(pipe, run, span, collector, EMPTY, 0)


def test_the_load_of_a_paused_agent_ends_with_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = StoppedAgent(T0_NS, stops_ns=T0_NS + 3 * NS_PER_S)
    span, load, outcome = watched(monkeypatch, agent, drain_ns=NS_PER_S)
    assert outcome == (True, True)
    assert not load.was_cut
    assert agent.lease_ends_ns <= span.end_ns <= agent.lease_ends_ns + NS_PER_S // 20
    assert [metrics.through for metrics in agent.reports] == [0, 1]


def test_a_load_that_outlasts_the_drain_is_cut_although_the_agent_is_paused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = StoppedAgent(T0_NS, stops_ns=T0_NS + NS_PER_S)
    span, load, outcome = watched(monkeypatch, agent, drain_ns=3600 * NS_PER_S)
    assert outcome == (True, True)
    assert load.was_cut
    assert agent.now_ns - span.end_ns <= Plan().fleet.drain_s.ns + NS_PER_S // 10


def test_a_process_that_wakes_after_its_lease_issues_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = StoppedAgent(
        T0_NS, stops_ns=T0_NS + NS_PER_S, sleeps_ns=T0_NS + NS_PER_S, sleeps_until_ns=T0_NS + 60 * NS_PER_S
    )
    span, _, outcome = watched(monkeypatch, agent)
    assert (outcome, span.end_ns) == ((True, True), T0_NS + 60 * NS_PER_S)


def test_an_agent_that_wakes_within_its_lease_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = StoppedAgent(T0_NS, stops_ns=T0_NS + NS_PER_S, wakes_ns=T0_NS + 4 * NS_PER_S)
    _, _, outcome = watched(monkeypatch, agent, end_ns=T0_NS + 4_500_000_000)
    assert outcome == (True, False)
    assert agent.reports[-1].through == 3  # the delayed seconds arrive in one report


def test_a_lease_that_ends_during_the_drain_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = StoppedAgent(T0_NS, stops_ns=T0_NS + NS_PER_S)
    _, _, outcome = watched(monkeypatch, agent, end_ns=T0_NS + 2 * NS_PER_S, drain_ns=9 * NS_PER_S)
    assert outcome == (True, False)
