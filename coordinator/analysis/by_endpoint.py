"""The operations of a run by the server that they were sent to. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from common.metrics.intervals import CommandMetrics, IntervalMetrics, merge_commands, merge_endpoints
from common.plan.planned_commands import has_endpoints
from common.plan.schema import Target
from common.plan.schema.target_url import parse_redis_url
from coordinator.analysis.totals.aggregate import Aggregate

PRIMARY, REPLICA = "primary", "replica"


@dataclass(frozen=True, slots=True)
class EndpointTotals:
    """One server, with all operations that were sent to it. name: `host:port`, or the path of a Unix socket. role: as
    the clients knew it; both, joined by "and", if the role has changed."""

    name: str
    role: str
    commands: CommandMetrics


def endpoints_of(run: Aggregate) -> tuple[EndpointTotals, ...]:
    """The servers of a run, in the measured stages, by name. A target that is one server has all operations, and counts
    as a primary."""
    parts = [_by_role(part) for part in run.scenarios]
    primaries = merge_endpoints(primaries for primaries, _ in parts)
    replicas = merge_endpoints(replicas for _, replicas in parts)
    return tuple(_totals(name, primaries.get(name), replicas.get(name)) for name in sorted({**primaries, **replicas}))


def _by_role(part: Aggregate) -> tuple[dict[str, CommandMetrics], dict[str, CommandMetrics]]:
    """(the primaries of one scenario, the replicas)."""
    measured, opened = part.measured, part.opened
    pools = measured.pools.values()
    if opened is not None and not has_endpoints(opened.plan.target):
        return {_address_of(opened.plan.target): _everything(measured)}, {}
    return merge_endpoints(pool.primaries for pool in pools), merge_endpoints(pool.replicas for pool in pools)


def _everything(measured: IntervalMetrics) -> CommandMetrics:
    return merge_commands(command for pool in measured.pools.values() for command in pool.commands.values())


def _address_of(target: Target) -> str:
    address = parse_redis_url(target.url)
    return str(address.hosts[0]) if address.path is None else address.path


def _totals(name: str, *by_role: CommandMetrics | None) -> EndpointTotals:
    found = {role: each for role, each in zip((PRIMARY, REPLICA), by_role, strict=True) if each is not None}
    return EndpointTotals(name, " and ".join(found), merge_commands(found.values()))
