from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import FleetError
from common.plan.schema import Fleet, Load, Plan, Pools, Scenario, Target, Visibility
from common.plan.visibility import visibility_scenarios
from common.units import Count, PerSecond, Seconds
from coordinator.core.dealt_plan import AgentCapacity, assign, connection_ceiling, split
from tests.support.stages import stage

AGENTS = st.lists(st.integers(1, 8), min_size=1, max_size=6).map(
    lambda processes: [AgentCapacity(f"a{number}", count) for number, count in enumerate(processes)]
)
GROUPS = st.lists(
    st.builds(
        Pools,
        client_pools=st.none() | st.integers(1, 20),
        client_instances_per_pool=st.integers(1, 4),
        threads_per_pool=st.integers(1, 4),
        max_connections=st.integers(1, 60),
    ),
    min_size=1,
    max_size=4,
).map(tuple)
PLANS = st.builds(Plan, pools=GROUPS, fleet=st.builds(Fleet, per_agent=st.booleans()))


@given(PLANS, AGENTS)
def test_every_pool_is_dealt_once_and_threads_are_numbered_without_gap(plan: Plan, agents: list[AgentCapacity]) -> None:
    dealt = assign(plan, agents)
    assert list(dealt.assignments) == [agent.agent_id for agent in agents]
    pools = sorted(
        (share for agent_id in dealt.assignments for share in dealt.pools_of(agent_id)),
        key=lambda share: share.number,
    )
    assert [share.number for share in pools] == list(range(dealt.pools_total))
    threads = [
        share.first_thread + thread
        for share in pools
        for thread in range(dealt.plan.pools[share.group].threads_per_pool)
    ]
    assert threads == list(range(dealt.threads_total))
    for number, group in enumerate(dealt.plan.pools):
        assert group.client_pools == sum(share.group == number for share in pools)


@given(PLANS, AGENTS)
def test_all_assignments_have_the_same_fleet_wide_plan(plan: Plan, agents: list[AgentCapacity]) -> None:
    dealt = assign(plan, agents)
    for (assignment,) in dealt.assignments.values():
        assert assignment.plan == dealt.plan
        assert assignment.threads_total == dealt.threads_total
    assert not dealt.plan.fleet.per_agent
    assert assign(dealt.plan, agents).pools_total == dealt.pools_total


@given(PLANS, AGENTS)
def test_the_ceiling_is_the_sum_over_all_pools_dealt(plan: Plan, agents: list[AgentCapacity]) -> None:
    dealt = assign(plan, agents)
    groups = [dealt.plan.pools[share.group] for agent_id in dealt.assignments for share in dealt.pools_of(agent_id)]
    assert dealt.connection_ceiling == sum(group.client_instances_per_pool * group.max_connections for group in groups)


def test_a_remaining_pool_goes_to_the_agent_with_the_fewest_threads_per_process() -> None:
    plan = Plan(pools=(Pools(name="first", client_pools=2), Pools(name="second", client_pools=1)))
    dealt = assign(plan, [AgentCapacity("small", 1), AgentCapacity("large", 4)])
    groups = {name: [share.group for share in dealt.pools_of(name)] for name in dealt.assignments}
    assert groups == {"small": [0], "large": [0, 1]}


@given(st.integers(0, 1000), st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_a_split_is_exact_and_every_part_its_proportion_or_one_more(count: int, weights: list[int]) -> None:
    parts = split(count, weights, range(len(weights)))
    assert sum(parts) == count
    more = [part - count * weight // sum(weights) for part, weight in zip(parts, weights, strict=True)]
    assert more == sorted(more, reverse=True)
    assert set(more) <= {0, 1}


def dealt(plan: Plan, *processes: int) -> list[int]:
    agents = [AgentCapacity(str(number), count) for number, count in enumerate(processes)]
    dealt = assign(plan, agents)
    return [len(dealt.pools_of(agent_id)) for agent_id in dealt.assignments]


def plan_of(*client_pools: int | None, per_agent: bool = False) -> Plan:
    groups = tuple(Pools(name=f"g{number}", client_pools=count) for number, count in enumerate(client_pools))
    return Plan(pools=groups, fleet=Fleet(per_agent=per_agent))


def test_pools_follow_the_worker_processes() -> None:
    assert dealt(plan_of(8), 1, 3) == [2, 6]


def test_what_does_not_divide_goes_to_the_first() -> None:
    assert dealt(plan_of(5), 2, 2) == [3, 2]
    assert dealt(plan_of(2), 1, 1, 1) == [1, 1, 0]


def test_what_does_not_divide_of_a_second_group_goes_to_those_who_have_less() -> None:
    assert dealt(plan_of(1, 1), 1, 1) == [1, 1]


def test_without_a_number_of_pools_every_process_gets_one() -> None:
    assert dealt(plan_of(None), 2, 3) == [2, 3]
    assert dealt(plan_of(None, per_agent=True), 2, 3) == [2, 3]


def test_per_agent_multiplies_pools_rate_and_requests() -> None:
    plan = Plan(
        pools=(Pools(client_pools=2),),
        load=Load(requests=Count(100), rate_per_s=PerSecond(10)),
        fleet=Fleet(per_agent=True),
    )
    dealt = assign(plan, [AgentCapacity("a", 1), AgentCapacity("b", 7), AgentCapacity("c", 1)])
    assert [len(dealt.pools_of(agent_id)) for agent_id in dealt.assignments] == [2, 2, 2]
    assert dealt.plan.load.requests == 300
    assert dealt.plan.load.rate_per_s == 30
    assert dealt.plan.pools[0].client_pools == 6


def test_per_agent_multiplies_the_rates_of_stages() -> None:
    plan = Plan(load=Load(stages=(stage(1, 10), stage(2), stage(3, 20))), fleet=Fleet(per_agent=True))
    dealt = assign(plan, [AgentCapacity("a", 1), AgentCapacity("b", 1)])
    assert dealt.plan.load.stages == (stage(1, 20), stage(2), stage(3, 40))


def test_the_example_of_the_requested_architecture_makes_300_connections_and_8_threads() -> None:
    group = Pools(client_pools=2, client_instances_per_pool=3, threads_per_pool=4, max_connections=50)
    dealt = assign(Plan(pools=(group,)), [AgentCapacity("a", 1), AgentCapacity("b", 1)])
    assert (dealt.connection_ceiling, dealt.threads_total) == (300, 8)
    assert connection_ceiling(Plan(pools=(group,))) == 300


def test_a_plan_cannot_be_dealt_without_agents() -> None:
    with pytest.raises(FleetError, match="expected at least one agent"):
        assign(Plan(), [])


@given(AGENTS)
def test_the_agent_that_writes_stamps_also_looks_for_them(agents: list[AgentCapacity]) -> None:
    wanted = Visibility(read="us")
    alone = Plan(pools=(Pools(client_pools=3, threads_per_pool=5),), load=Load(duration_s=Seconds(2)))
    main = Scenario(name="main", pools=alone.pools, workload=alone.workload, load=alone.load)
    scenarios = (main, *visibility_scenarios(wanted, alone.load))
    dealt = assign(msgspec.structs.replace(alone, scenarios=scenarios, targets={"us": Target()}), agents)
    hosts = {share.scenario: agent_id for agent_id in dealt.assignments for share in dealt.pools_of(agent_id)}
    assert hosts[1] == hosts[2]
