from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from common.metrics.intervals import CommandMetrics, merge_commands
from common.plan.schema import Target
from coordinator.analysis.by_endpoint import endpoints_of, notable_endpoints
from coordinator.analysis.ledger import audit
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.analysis.verdict import judge
from coordinator.journal.records import AnyRecord, TargetFacts
from tests.support.records import accepted, clean_run, closed, command, histogram, interval, noted, opened, plan

MS = 1_000_000
URL = "redis+cluster://h:1"


def node(count: int = 2000, ms: float = 1.0, **counts: object) -> CommandMetrics:
    """A node with operations that took this long."""
    return command(histogram(*[round(ms * MS)] * count), **counts)


def records_of(
    primaries: Mapping[str, CommandMetrics], replicas: Mapping[str, CommandMetrics] | None = None, servers: int = 3
) -> list[AnyRecord]:
    """A run on a cluster with this many primaries, as many replicas, and these figures by node."""
    by_node = [*primaries.values(), *(replicas or {}).values()]
    part = interval(0, {"GET": merge_commands(by_node)})
    pool = msgspec.structs.replace(part.pools["main"], primaries=dict(primaries), replicas=dict(replicas or {}))
    part = msgspec.structs.replace(part, pools={"main": pool})
    facts = TargetFacts(url=URL, topology="cluster", server="valkey", primaries=servers, replicas=servers)
    begun = msgspec.structs.replace(
        opened(msgspec.structs.replace(plan(), target=Target(url=URL)), ["a1"]), target=facts
    )
    return [begun, accepted("a1", 0, part), noted("a1", part.operations), closed()]


def run_of(*args: Mapping[str, CommandMetrics], servers: int = 3) -> Aggregate:
    return fold(records_of(*args, servers=servers))


def notes(*args: Mapping[str, CommandMetrics], servers: int = 3) -> list[str]:
    return list(notable_endpoints(run_of(*args, servers=servers)))


def test_a_target_that_is_one_server_has_all_operations_at_its_address() -> None:
    [found] = endpoints_of(fold(clean_run()))
    assert (found.name, found.role, found.commands.operations) == ("127.0.0.1:6379", "primary", 6000)


def test_a_unix_socket_is_named_by_its_path() -> None:
    the_plan = msgspec.structs.replace(plan(), target=Target(url="unix:///tmp/redis.sock"))
    assert [each.name for each in endpoints_of(fold(clean_run(the_plan)))] == ["/tmp/redis.sock"]


def test_a_server_whose_role_changed_has_both_roles_and_all_its_operations() -> None:
    run = run_of({"h:1": node(5), "h:2": node(7)}, {"h:2": node(2), "h:3": node(1)})
    found = {each.name: (each.role, each.commands.operations) for each in endpoints_of(run)}
    assert found == {"h:1": ("primary", 5), "h:2": ("primary and replica", 9), "h:3": ("replica", 1)}


def test_nodes_that_are_alike_are_not_notable() -> None:
    assert notes({"h:1": node(), "h:2": node(2200, 2.5), "h:3": node()}) == []


def test_a_slow_node_is_named_with_its_p99_and_that_of_its_peers() -> None:
    assert notes({"h:1": node(), "h:2": node(ms=12.5), "h:3": node(ms=1.1)}) == [
        "h:2 is slow: its service time has a p99 of 12.50 ms, that of the other primaries 1.00 ms."
    ]


@pytest.mark.parametrize(
    "slow",
    [
        node(999, 50.0),  # too few operations
        node(2000, 1.4),  # not three times as slow
    ],
)
def test_a_node_that_may_be_slow_by_chance_is_not_named(slow: CommandMetrics) -> None:
    assert notes({"h:1": node(1600), "h:2": slow, "h:3": node(1600)}) == []


def test_a_difference_of_microseconds_is_not_slow() -> None:
    assert notes({"h:1": node(ms=0.1), "h:2": node(ms=0.45)}, servers=2) == []


def test_replicas_are_compared_with_replicas_only() -> None:
    primaries = {"h:1": node(ms=20.0), "h:2": node(ms=20.0)}
    assert notes(primaries, {"h:3": node(), "h:4": node()}, servers=2) == []
    assert notes(primaries, {"h:3": node(), "h:4": node(ms=9.0)}, servers=2) == [
        "h:4 is slow: its service time has a p99 of 9.00 ms, that of the other replicas 1.00 ms."
    ]


def test_a_hot_node_is_named_with_its_share() -> None:
    assert notes({"h:1": node(1000), "h:2": node(6000), "h:3": node(3000)}) == [
        "h:2 is hot: it got 60.0% of the operations of the 3 primaries; an even share is 33.3%."
    ]


def test_a_node_that_gets_all_operations_is_hot() -> None:
    assert notes({"h:1": node(6000)}) == [
        "h:1 is hot: it got 100.0% of the operations of the 3 primaries; an even share is 33.3%."
    ]


def test_few_operations_make_no_node_hot() -> None:
    assert notes({"h:1": node(600), "h:2": node(50), "h:3": node(50)}) == []


def test_at_most_three_nodes_of_a_kind_are_named() -> None:
    found = notes({f"h:{number}": node(ms=50.0 if number < 5 else 1.0) for number in range(20)}, servers=20)
    assert [line.partition(" is ")[0] for line in found] == ["h:4", "h:3", "h:2"]


def test_control_characters_in_the_name_of_a_node_are_escaped() -> None:
    [found] = notes({"\x1b[2J": node(6000)})
    assert found.startswith("\\x1b[2J is hot")


def test_a_notable_node_does_not_make_a_run_suspect() -> None:
    run = run_of({"h:1": node(), "h:2": node(ms=12.5), "h:3": node()})
    before = judge(fold(records_of({"h:1": node(), "h:2": node(), "h:3": node()})), audit(run))
    found = judge(run, audit(run))
    assert (found.level, found.reasons) == (before.level, before.reasons)
    assert (len(found.notes), before.notes) == (1, ())
