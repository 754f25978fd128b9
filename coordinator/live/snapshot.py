"""What the live view shows at one moment: a pure function of what is known so far, and of what the caller knows of
the agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.aggregate import Aggregate, Second

SECONDS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class SecondRow:
    """One complete second. Latencies are service times of operations done, None where there were none."""

    second: int
    ok: int
    errors: int
    p50_us: float | None
    p99_us: float | None
    max_us: float | None


@dataclass(frozen=True, slots=True)
class AgentRow:
    """One agent, as its last heartbeat left it. state: one word. heartbeat_age_s: None before the first."""

    agent_id: str
    host: str
    state: str
    cpu_percent: float
    heartbeat_age_s: float | None
    offset_us: float | None
    alive: bool = True


@dataclass(frozen=True, slots=True)
class LiveSnapshot:
    """One moment of a run. left_s and left_requests: what remains, None where the plan does not limit it.
    rows: the last complete seconds, oldest first. unsent: operations that were due, but not begun.
    ops_per_s: mean over all complete seconds."""

    elapsed_s: float
    left_s: float | None
    left_requests: int | None
    fraction: float
    rows: tuple[SecondRow, ...]
    operations: int
    ok: int
    errors: int
    unsent: int
    ops_per_s: float
    connections_open: int
    connection_ceiling: int
    agents: tuple[AgentRow, ...]


def build_snapshot(aggregate: Aggregate, agents: Sequence[AgentRow], elapsed_s: float) -> LiveSnapshot:
    """The moment `elapsed_s` after the start instant (below zero: before it)."""
    seconds = aggregate.seconds
    ok = sum(second.ok for second in seconds.values())
    errors = sum(second.errors for second in seconds.values())
    load = aggregate.opened.plan.load if aggregate.opened else None
    left_s = max(load.duration_s - max(elapsed_s, 0.0), 0.0) if load and load.duration_s is not None else None
    left_requests = max(load.requests - ok - errors, 0) if load and load.requests is not None else None
    fractions = [0.0]
    if load and load.duration_s and left_s is not None:
        fractions.append(1 - left_s / load.duration_s)
    if load and load.requests and left_requests is not None:
        fractions.append(1 - left_requests / load.requests)
    last = aggregate.complete_through
    shown = range(max(0, last - SECONDS_SHOWN + 1), last + 1)
    newest = seconds.get(max(seconds, default=-1))
    return LiveSnapshot(
        elapsed_s=elapsed_s,
        left_s=left_s,
        left_requests=left_requests,
        fraction=max(fractions),
        rows=tuple(_row(number, seconds.get(number) or Second()) for number in shown),
        operations=ok + errors,
        ok=ok,
        errors=errors,
        unsent=aggregate.totals.unsent,
        ops_per_s=sum(second.ok for number, second in seconds.items() if number <= last) / max(last + 1, 1),
        connections_open=(seconds.get(last) or newest or Second()).connections_open,
        connection_ceiling=aggregate.opened.connection_ceiling if aggregate.opened else 0,
        agents=tuple(agents),
    )


def _row(number: int, second: Second) -> SecondRow:
    service = second.service.merged
    p50, p99 = service.quantiles((0.5, 0.99))
    return SecondRow(
        second=number,
        ok=second.ok,
        errors=second.errors,
        p50_us=p50 / 1e3 if service.count else None,
        p99_us=p99 / 1e3 if service.count else None,
        max_us=service.maximum / 1e3 if service.count else None,
    )
