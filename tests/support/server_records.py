"""Records of servers that were watched, for tests of the fold and of the reports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from common.units import NS_PER_S
from coordinator.journal.records import (
    AnyRecord,
    CommandTime,
    CountersRead,
    LatencyEvent,
    LoggedCommand,
    NodeDescribed,
    NodeSample,
    NodeSampled,
    Reading,
    RunStarted,
)

NODE = "127.0.0.1:6379"
CONFIG = {"maxmemory": "0", "maxmemory-policy": "noeviction", "save": ""}


def described(when: Reading, at_ns: int, node: str = NODE, **fields: Any) -> NodeDescribed:
    """A server that has called GET a hundred times, 12 us each, between its two descriptions."""
    after = when is Reading.AFTER
    usual: dict[str, Any] = {
        "role": "primary",
        "version": "valkey 9.1.2",
        "run_id": "r",
        "keys": 5,
        "config": CONFIG,
        "commands": {"get": CommandTime(200, 2000, ((16, 200),)) if after else CommandTime(100, 800, ((16, 100),))},
        "sample": NodeSample(reply_us=90, memory=1 << 20, clients=3, commands=1000 if after else 0),
    }
    return NodeDescribed(when=when, node=node, at_ns=at_ns, **(usual | fields))


def slow(value_us: int, command: str = "LRANGE list:1 0 -1", number: int = 1) -> LoggedCommand:
    return LoggedCommand(log="slow", id=number, at_s=1_700_000_000, value=value_us, command=command)


def event(max_ms: int) -> LatencyEvent:
    return LatencyEvent(name="command", at_s=1_700_000_000, latest_ms=1, max_ms=max_ms)


def with_servers(
    records: Iterable[AnyRecord],
    *nodes: str,
    seconds: int = 3,
    extra: Iterable[AnyRecord] = (),
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> Iterator[AnyRecord]:
    """The same run, whose servers were described and sampled each second. extra: more records of servers, in the load.
    before, after: fields of all descriptions."""
    t0_ns = 0
    for record in records:
        if isinstance(record, CountersRead) and record.when is Reading.BEFORE:
            yield from (described(Reading.BEFORE, 1, node, **(before or {})) for node in nodes)
        if isinstance(record, CountersRead) and record.when is Reading.AFTER:
            at_ns = t0_ns + (seconds + 1) * NS_PER_S
            yield from (described(Reading.AFTER, at_ns, node, **(after or {})) for node in nodes)
        yield record
        if isinstance(record, RunStarted):
            t0_ns = record.t0_ns
            for second in range(seconds + 1):
                yield from (_sampled(node, t0_ns, second) for node in nodes)
            yield from extra


def _sampled(node: str, t0_ns: int, second: int) -> NodeSampled:
    sample = NodeSample(
        reply_us=150,
        replica=False,
        cpu_us=second * 450_000,
        memory=3 << 20,
        rss=6 << 20,
        evicted=0,
        expired=2 * second,
        hits=90 * second,
        misses=10 * second,
        clients=7,
        blocked=0,
        commands=1000 * second,
        bytes_in=2048 * second,
        bytes_out=4096 * second,
        lag_s=0,
    )
    return NodeSampled(node=node, at_ns=t0_ns + second * NS_PER_S, sample=sample)
