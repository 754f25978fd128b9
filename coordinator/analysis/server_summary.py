"""The servers' side of a run, as summary.json has it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from common.commands import COMMANDS, Template
from common.metrics.intervals import CommandMetrics
from common.plan.planned_commands import planned_commands
from common.units import NS_PER_S
from coordinator.analysis.ledger import commandstats_row
from coordinator.analysis.server_figures import (
    COLUMNS,
    CommandGain,
    NodeFigures,
    NodeSamples,
    added,
    commands_gained,
    events_in_run,
    logged_in_run,
    was_restarted,
)
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.totals.server_side import NodeSide, Silence
from coordinator.journal.records import BusySlot, HotKey, LatencyEvent, LoggedCommand, NodeDescribed, Reading

MOST_UNAVAILABLE = 100
Gains = Mapping[str, CommandGain]


class NodeStateSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One server before or after the load. keys: in all databases. memory: used bytes. config: settings that matter."""

    keys: int | None
    memory: int | None
    clients: int | None
    config: dict[str, str]


class ServerCommandSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A command's time in one server. p50_us, p99_us: upper limits of the server's buckets, which double; None if the
    server has no LATENCY HISTOGRAM."""

    calls: int
    usec_per_call: float
    p50_us: int | None
    p99_us: int | None


class SilenceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A time without answers, in seconds from the start. until_s: None if there was no answer any more."""

    since_s: float
    until_s: float | None
    reason: str


class NodeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One server of the target.

    before, after: None if it was not described then. figures: while the load ran. commands: between the two
    descriptions, without the coordinator's own calls. slowlog: entries of the run; slowlog_more: entries that the
    server has overwritten. series: a row for each sample, see `columns`.
    """

    target: str
    version: str
    role: str
    before: NodeStateSummary | None
    after: NodeStateSummary | None
    figures: NodeFigures
    commands: dict[str, ServerCommandSummary]
    slowlog: tuple[LoggedCommand, ...]
    slowlog_more: int
    latency_events: tuple[LatencyEvent, ...]
    hot_keys: tuple[HotKey, ...]
    slots: tuple[BusySlot, ...]
    silences: tuple[SilenceSummary, ...]
    series: msgspec.Raw


class ServerTimeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of a command goes: mean and p99 of its time in the server, and of its service time at the client.
    server_p99_us: an upper limit, see `ServerCommandSummary`. batch: operations in a client's service time; None if
    scenarios differ."""

    calls: int
    server_us: float
    client_us: float
    server_p99_us: int | None
    client_p99_us: float
    batch: int | None


class UnavailableSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Something that could not be read from a server, and why. node: "" for no single server."""

    node: str
    what: str
    reason: str


class ServerSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The target's servers during the run. columns: of the rows of `series`. times: by command of the report."""

    nodes: dict[str, NodeSummary]
    times: dict[str, ServerTimeSummary]
    unavailable: tuple[UnavailableSummary, ...]
    columns: tuple[str, ...] = COLUMNS


def server_summary(aggregate: Aggregate, commands: Mapping[str, CommandMetrics]) -> ServerSummary:
    """Return the servers' side of everything known so far. commands: what clients measured, by their names."""
    sides = sorted(aggregate.servers.nodes.values(), key=lambda side: (side.target, side.name))
    names = Counter(side.name for side in sides)
    gains = [_gained(aggregate, side) for side in sides]
    missing = [UnavailableSummary(node="", what="samples", reason=text) for text in aggregate.servers.others]
    missing += [each for side in sides for each in _unavailable(side)]
    return ServerSummary(
        nodes={
            side.name if names[side.name] == 1 else f"{side.target} {side.name}": _node(aggregate, side, gained)
            for side, gained in zip(sides, gains, strict=True)
        },
        times=_times(aggregate, commands, list(zip(sides, gains, strict=True))),
        unavailable=tuple(missing[:MOST_UNAVAILABLE]),
    )


def _node(aggregate: Aggregate, side: NodeSide, gained: Mapping[str, CommandGain]) -> NodeSummary:
    before, after = side.before, side.after
    samples = NodeSamples(side, _t0_ns(aggregate))
    logged, more = logged_in_run(before, after) if after else ((), 0)
    return NodeSummary(
        target=side.target,
        version=next((each.version for each in (after, before) if each and each.version), ""),
        role=_role(side),
        before=_state(before),
        after=_state(after),
        figures=samples.figures(aggregate.duration_s),
        commands={
            name: ServerCommandSummary(
                calls=gain.calls,
                usec_per_call=gain.usec / gain.calls,
                p50_us=gain.quantile_us(0.5),
                p99_us=gain.quantile_us(0.99),
            )
            for name, gain in gained.items()
        },
        slowlog=logged,
        slowlog_more=more,
        latency_events=events_in_run(before, after) if after else (),
        hot_keys=after.hot_keys if after else (),
        slots=after.slots if after else (),
        silences=tuple(_silence(aggregate, silence) for silence in side.silences),
        series=msgspec.Raw(msgspec.json.encode(samples.rows())),
    )


def _t0_ns(aggregate: Aggregate) -> int:
    return aggregate.started.t0_ns if aggregate.started is not None else 0


def _role(side: NodeSide) -> str:
    """Return the role that the server had last."""
    last = side.last_sample
    if last is not None and last.replica is not None:
        return "replica" if last.replica else "primary"
    return next((each.role for each in (side.after, side.before) if each), "")


def _state(described: NodeDescribed | None) -> NodeStateSummary | None:
    if described is None:
        return None
    sample = described.sample
    return NodeStateSummary(
        keys=described.keys,
        memory=sample.memory if sample else None,
        clients=sample.clients if sample else None,
        config=described.config,
    )


def _silence(aggregate: Aggregate, silence: Silence) -> SilenceSummary:
    t0_ns, until_ns = _t0_ns(aggregate), silence.until_ns
    return SilenceSummary(
        since_s=round((silence.since_ns - t0_ns) / NS_PER_S, 3),
        until_s=None if until_ns is None else round((until_ns - t0_ns) / NS_PER_S, 3),
        reason=silence.reason,
    )


def _gained(aggregate: Aggregate, side: NodeSide) -> dict[str, CommandGain]:
    if side.before is None or side.after is None or was_restarted(side.before, side.after):
        return {}
    # Between the two readings: the query that read the first one, all samples, and the first reading of the ledger.
    own = Counter(side.sampled) + Counter({"info": 1})
    ledger = aggregate.readings.get(Reading.BEFORE)
    for node in ledger.nodes if ledger else ():
        if node.name == side.name:
            own += Counter(node.own) + Counter({"info": 1})
    return commands_gained(side.before, side.after, own)


def _unavailable(side: NodeSide) -> Iterator[UnavailableSummary]:
    found: dict[str, str] = {}
    if side.refused:
        found["samples"] = side.refused
    for described in (side.before, side.after):
        for unread in described.unread if described else ():
            found.setdefault(unread.what, unread.reason)
    reason = side.silences[-1].reason if side.silences else "the run has no end yet"
    if side.before is None:
        found["what it was before the load"] = reason
    if side.after is None:
        found["what it was after the load"] = reason
    elif side.before is not None and was_restarted(side.before, side.after):
        found["times of commands"] = "its counters began at 0 again during the run"
    for what, why in found.items():
        yield UnavailableSummary(node=side.name, what=what, reason=why)


class _Use(NamedTuple):
    """A template of a scenario. target: name of the scenario's target. batch: operations that it sends together."""

    target: str
    template: Template
    batch: int


def _uses(aggregate: Aggregate) -> dict[str, list[_Use]]:
    """Return the templates of the plan by label. Journals of earlier releases have the command's name as its label."""
    found: dict[str, list[_Use]] = {}
    for part in aggregate.scenarios:
        if part.opened is None:
            continue
        workload = part.opened.plan.workload
        batch = max(workload.pipeline, workload.transaction, 1)
        for planned in planned_commands(workload):
            use = _Use(part.scenario.target if part.scenario else "", planned.template, batch)
            for label in {planned.label, planned.template.name}:
                found.setdefault(label, []).append(use)
    return found


def _times(
    aggregate: Aggregate, commands: Mapping[str, CommandMetrics], servers: Sequence[tuple[NodeSide, Gains]]
) -> dict[str, ServerTimeSummary]:
    """Return the times of each command over all servers of its targets. A server counts all templates of a command
    together. A replica repeats what its primary wrote, so only reads count there."""
    times, uses = {}, _uses(aggregate)
    for label, command in commands.items():
        gains = {
            (side.target, side.name, row): gained[row]
            for use in uses.get(label, ())
            for side, gained in servers
            if side.target == use.target and (_role(side) == "primary" or _is_read(use.template.name))
            if (row := commandstats_row(use.template, gained)) in gained
        }
        together = added(list(gains.values()))
        if together.calls and command.service.count:
            [client_p99_ns] = command.service.quantiles((0.99,))
            batches = {use.batch for use in uses[label]}
            times[label] = ServerTimeSummary(
                calls=together.calls,
                server_us=together.usec / together.calls,
                client_us=command.service.mean / 1e3,
                server_p99_us=together.quantile_us(0.99),
                client_p99_us=client_p99_ns / 1e3,
                batch=batches.pop() if len(batches) == 1 else None,
            )
    return times


def _is_read(name: str) -> bool:
    return name in COMMANDS and not COMMANDS[name].writes
