from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from common.plan.schema import Connections, Driver, Load, Pools, Scenario
from common.protocol.messages import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Pace,
    PreparationStep,
    Prepared,
    Preparing,
)
from common.redaction import REDACTED
from common.units import NS_PER_S, Seconds
from coordinator.core.actions import Progress
from coordinator.core.dealt_plan import assign
from coordinator.core.member import Member
from coordinator.core.registry import Registry, capacities
from coordinator.core.setup import (
    MOST_PROCESSES,
    Setup,
    agents_missing,
    ceiling_lines,
    ceilings_of,
    endless_lines,
    files_lines,
    negotiated,
    opened,
    preparing,
    refusal,
)
from coordinator.journal.records import TargetFacts
from tests.support.protocol import fleet_plan, hello, setup_for

NOW_NS = 9 * NS_PER_S


def members(*names: str) -> list[Member]:
    registry = Registry()
    return [registry.admit(hello(name), name, name.encode(), NOW_NS) for name in names]


@pytest.mark.parametrize(
    ("lowest", "highest", "protocol"),
    [
        (PROTOCOL_MIN, PROTOCOL_MAX, PROTOCOL_MAX),
        (0, 99, PROTOCOL_MAX),
        (PROTOCOL_MAX, 99, PROTOCOL_MAX),
        (PROTOCOL_MAX + 1, 99, None),
        (0, PROTOCOL_MIN - 1, None),
        (99, 0, None),
    ],
)
def test_the_highest_common_version_is_used(lowest: int, highest: int, protocol: int | None) -> None:
    assert negotiated(hello(protocol_min=lowest, protocol_max=highest)) == protocol


def test_an_agent_like_any_other_is_not_refused() -> None:
    assert refusal(hello(processes=MOST_PROCESSES)) is None


def test_a_refusal_names_the_cause_and_a_remedy() -> None:
    assert refusal(hello(protocol_min=7, protocol_max=8)) == (
        f"it speaks protocol 7 to 8 (version 0.1), this coordinator {PROTOCOL_MIN} to {PROTOCOL_MAX}; "
        "install the same release on both"
    )
    assert refusal(hello(processes=MOST_PROCESSES + 1)) == (
        f"it has {MOST_PROCESSES + 1:,} worker processes; expected at most {MOST_PROCESSES:,}, "
        "see agent join --processes"
    )


def test_progress_shows_connections_while_they_open_and_agents_otherwise() -> None:
    registry, two = Registry(), members("a", "b")
    registry.deal(two[0], NOW_NS)
    registry.ready(two[0], Prepared(processes=1, connections_open=1), NOW_NS)
    assert (preparing(two).done, preparing(two).total) == (1, 2)
    assert preparing(two).text == "preparing agents (their worker processes start)"
    registry.progress(two[1], Preparing(step=PreparationStep.CONNECTIONS, done=30, total=50), NS_PER_S)
    assert (preparing(two).text, preparing(two).done, preparing(two).total) == ("opening connections", 30, 50)


def test_progress_shows_keys_until_every_agent_has_finished_its_preload() -> None:
    registry, two = Registry(), members("a", "b")
    for member, done in zip(two, (40, 50), strict=True):
        registry.progress(member, Preparing(step=PreparationStep.PRELOAD, done=done, total=50), NS_PER_S)
    registry.progress(two[1], Preparing(step=PreparationStep.CONNECTIONS, done=3, total=5), NS_PER_S)
    assert preparing(two) == Progress("preloading", 90, 100)
    # Who opens connections has done with keys, whether its last word on them was heard or not.
    registry.progress(two[0], Preparing(step=PreparationStep.CONNECTIONS, done=1, total=5), NS_PER_S)
    assert preparing(two) == Progress("opening connections", 4, 10)


def test_a_run_that_waits_in_vain_names_the_missing_agents_and_a_remedy() -> None:
    two = members("a", "b")
    setup = setup_for(fleet_plan(), expected=3)
    assert agents_missing(setup, two[:1], two) == (
        "expected 3 agents within 1m, got 1 (a); b cannot take part: silent, or at work for another run; "
        "start them with `agent join 127.0.0.1:5555`, or wait longer with --wait"
    )
    assert agents_missing(setup, [], []).startswith("expected 3 agents within 1m, got 0 (none); start them")


def against(target: TargetFacts) -> Setup:
    return replace(setup_for(fleet_plan(), expected=1), target=target)


def test_a_warning_shows_that_the_server_allows_fewer_connections() -> None:
    plan = msgspec.structs.replace(fleet_plan(), pools=(Pools(client_pools=2, max_connections=50),))
    dealt = assign(plan, capacities(members("a")))
    target = TargetFacts(url="", topology="standalone", server="", max_clients=99)
    assert len(ceiling_lines(against(target), dealt)) == 2
    assert len(ceiling_lines(against(msgspec.structs.replace(target, max_clients=100)), dealt)) == 1


@pytest.mark.parametrize(
    "pools", [Pools(client_pools=2, driver=Driver.WIRE), Pools(client_pools=2, connections=Connections.PREWARM)]
)
def test_a_warning_with_a_remedy_shows_that_some_connections_cannot_open(pools: Pools) -> None:
    dealt = assign(msgspec.structs.replace(fleet_plan(), pools=(pools,)), capacities(members("a")))
    target = TargetFacts(url="", topology="standalone", server="", max_clients=30)
    assert ceiling_lines(against(target), dealt)[-1] == (
        "warning: 100 is more than the 30 clients that the server allows (maxclients): some cannot open; raise "
        "maxclients on the server, or use fewer connections"
    )


def test_a_note_shows_once_that_a_local_agent_may_need_more_open_files() -> None:
    pools = Pools(client_pools=4, client_instances_per_pool=50, threads_per_pool=50)
    plan = msgspec.structs.replace(fleet_plan(), pools=(pools,))
    two = members("a", "b")
    dealt, setup = assign(plan, capacities(two)), setup_for(plan, expected=2)
    assert files_lines(setup, dealt, two) == []
    short = replace(setup, host=two[0].host, open_files_limit=100)
    [line] = files_lines(short, dealt, two)
    assert line.startswith("note: a worker process may open 100 files (`ulimit -n`), but needs ")
    assert files_lines(replace(short, host="another machine"), dealt, two) == []
    assert files_lines(replace(short, open_files_limit=1000), dealt, two) == []


def test_a_run_against_a_cluster_multiplies_its_ceiling_by_the_nodes_but_not_that_of_a_node() -> None:
    plan = msgspec.structs.replace(fleet_plan(), pools=(Pools(client_pools=2, max_connections=50),))
    dealt = assign(plan, capacities(members("a")))
    target = TargetFacts(url="", topology="cluster", server="", max_clients=100, primaries=3, replicas=3)
    [_, product] = ceiling_lines(against(target), dealt)
    assert product == "that is for each node of the cluster: 100 x 6 nodes (3 primaries, 3 replicas) = 600"
    assert sum(ceilings_of(against(target), dealt)) == 600
    assert sum(ceilings_of(against(msgspec.structs.replace(target, topology="sentinel")), dealt)) == 100
    assert "a node allows" in ceiling_lines(against(msgspec.structs.replace(target, max_clients=99)), dealt)[-1]


def test_no_password_is_written_down() -> None:
    plan = fleet_plan()
    plan = msgspec.structs.replace(plan, target=msgspec.structs.replace(plan.target, password="hunter2"))
    two = members("a", "b")
    dealt = assign(plan, capacities(two))
    record = opened(setup_for(plan, 2), dealt, two)
    assert record.plan.target.password == REDACTED
    assert [facts.agent_id for facts in record.agents] == ["a", "b"]
    assert "hunter2" not in repr(record)


@pytest.mark.parametrize(
    ("agents", "lease_s", "frame_s", "heartbeat_s"),
    [(1, 30.0, 1, 1), (250, 30.0, 1, 1), (251, 30.0, 2, 2), (251, 9.0, 2, 1), (1000, 30.0, 4, 2), (9000, 30.0, 4, 2)],
)
def test_agents_of_a_large_fleet_report_more_seldom(
    agents: int, lease_s: float, frame_s: int, heartbeat_s: int
) -> None:
    assert setup_for(fleet_plan(lease_s=lease_s), agents).pace == Pace(frame_s=frame_s, heartbeat_s=heartbeat_s)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ((), "the load runs until it is stopped: Ctrl-C drains it and prints the report"),
        (("a",), "the scenario a runs until it is stopped: Ctrl-C drains it and prints the report"),
        (("a", "b"), "the scenarios a, b run until they are stopped: Ctrl-C drains them and prints the report"),
    ],
)
def test_loads_that_run_until_stopped_are_named(names: tuple[str, ...], line: str) -> None:
    endless = Load(duration_s=Seconds(0))
    plan = msgspec.structs.replace(
        fleet_plan(), load=endless, scenarios=tuple(Scenario(name=name, load=endless) for name in names)
    )
    assert endless_lines(plan) == [line]
