"""What the main thread of a worker process does while the load runs."""

from __future__ import annotations

from typing import Any

import pytest

from agent.worker.main import _watch
from agent.worker.pacer import NEVER_NS, Span
from common.messages import Assignment, WorkerStop
from common.plan.schema import Plan


def test_an_order_is_heard_also_where_each_collection_takes_longer_than_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As among hundreds of busy threads, for which the interpreter's lock is the limit."""
    now_ns = 10**15
    span = Span(now_ns, NEVER_NS)

    class Slow:
        def look(self) -> None: ...

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
