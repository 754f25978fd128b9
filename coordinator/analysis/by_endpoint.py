"""The operations of a run by the server that they were sent to, and the servers that stand out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median_low

from common.metrics.intervals import CommandMetrics, IntervalMetrics, merge_commands, merge_endpoints
from common.plan.planned_commands import has_endpoints
from common.plan.schema import Target
from common.plan.schema.target_url import parse_redis_url
from common.units import printable
from coordinator.analysis.totals.aggregate import Aggregate

PRIMARY, REPLICA = "primary", "replica"

SLOW_FACTOR, SLOW_LEAST_NS = 3.0, 500_000
"""An endpoint is slow if its p99 is this many times the p99 of its peers (the median of their p99s), and by at least
this much longer. Its peers have the same role, because reads and writes take different times."""
HOT_FACTOR = 1.5
"""An endpoint is hot if it gets this many times an even share of the operations of its role."""
LEAST_SAMPLES = 1000
"""Operations of an endpoint below which it is not judged: its p99 would depend on fewer than ten of them."""
_NAMED = 3


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


def notable_endpoints(part: Aggregate) -> Iterator[str]:
    """A sentence for each slow and each hot endpoint of a scenario."""
    endpoints = endpoints_of(part)
    for role, known in _servers_by_role(part).items():
        peers = [each for each in endpoints if each.role == role]
        yield from _slow(peers, role)
        yield from _hot(peers, role, max(known, len(peers)))


def _servers_by_role(part: Aggregate) -> dict[str, int]:
    """How many servers of each role the target had before the run; 0 where that is not known. Servers without any
    operation are counted too: without them, one that gets all operations would have an even share."""
    facts = part.opened.target if part.opened is not None else None
    if facts is None or facts.topology != "cluster":
        return {PRIMARY: 0, REPLICA: 0}
    return {PRIMARY: facts.primaries, REPLICA: facts.replicas}


def _slow(peers: Sequence[EndpointTotals], role: str) -> Iterator[str]:
    p99s_ns = {
        each.name: each.commands.service.quantiles((0.99,))[0]
        for each in peers
        if each.commands.service.count >= LEAST_SAMPLES
    }
    found = []
    for name, p99_ns in p99s_ns.items():
        others_ns = [other_ns for other, other_ns in p99s_ns.items() if other != name]
        if others_ns and p99_ns >= max(SLOW_FACTOR * (usual_ns := median_low(others_ns)), usual_ns + SLOW_LEAST_NS):
            found.append((p99_ns, name, usual_ns))
    for p99_ns, name, usual_ns in sorted(found, reverse=True)[:_NAMED]:
        yield (
            f"{printable(name)} is slow: its service time has a p99 of {p99_ns / 1e6:,.2f} ms, that of the other "
            f"{_plural(role)} {usual_ns / 1e6:,.2f} ms."
        )


def _hot(peers: Sequence[EndpointTotals], role: str, servers: int) -> Iterator[str]:
    everything = sum(each.commands.operations for each in peers)
    if servers < 2 or everything < LEAST_SAMPLES * servers:
        return
    even = everything / servers
    hot = sorted((each for each in peers if each.commands.operations >= HOT_FACTOR * even), key=_by_load)
    for each in hot[:_NAMED]:
        yield (
            f"{printable(each.name)} is hot: it got {each.commands.operations / everything:.1%} of the operations of "
            f"the {servers} {_plural(role)}; an even share is {1 / servers:.1%}."
        )


def _by_load(endpoint: EndpointTotals) -> int:
    return -endpoint.commands.operations


def _plural(role: str) -> str:
    return "primaries" if role == PRIMARY else "replicas"
