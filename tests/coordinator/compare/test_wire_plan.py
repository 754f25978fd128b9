from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PlanError, UsageError
from common.plan.rules.checks import check_plan
from common.plan.schema import Command, Driver, Load, Plan, Pools, Scenario, Target, TcpPool, Workload
from common.units import Count, Seconds
from coordinator.compare.wire_plan import at_once, plans_to_compare, wire_twin

GROUPS = st.lists(
    st.builds(
        Pools,
        client_pools=st.none() | st.integers(1, 20),
        client_instances_per_pool=st.integers(1, 9),
        threads_per_pool=st.integers(1, 9),
        max_connections=st.integers(1, 60),
        tcp_pool=st.sampled_from(TcpPool),
        tcp_pool_wait_s=st.integers(1, 9).map(Seconds),
        checkout_timeout_s=st.integers(1, 9).map(Seconds),
    ),
    min_size=1,
    max_size=3,
).map(
    lambda groups: tuple(msgspec.structs.replace(group, name=f"group{number}") for number, group in enumerate(groups))
)
COUNTED = {"client_instances_per_pool", "threads_per_pool", "max_connections"}
OF_WAITING = {"checkout_timeout_s", "tcp_pool", "tcp_pool_wait_s"}


def plan(*groups: Pools, target: Target | None = None, commands: tuple[str, ...] = ("GET", "SET")) -> Plan:
    return Plan(
        target=target or Target(url="redis://127.0.0.1:6379", password="secret"),
        pools=groups or (Pools(),),
        workload=Workload(commands=tuple(Command(command=command) for command in commands)),
        load=Load(requests=Count(5)),
    )


@given(GROUPS)
def test_the_wire_plan_has_a_connection_for_each_operation_under_way(groups: tuple[Pools, ...]) -> None:
    for group, twin in zip(groups, wire_twin(plan(*groups)).pools, strict=True):
        connections = twin.client_instances_per_pool * twin.max_connections
        assert connections == at_once(group)
        assert connections <= min(group.threads_per_pool, group.client_instances_per_pool)
        assert twin.max_connections <= group.max_connections


@given(GROUPS)
def test_the_wire_plan_differs_only_in_its_driver_and_its_connections(
    groups: tuple[Pools, ...],
) -> None:
    given_plan = plan(*groups)
    twin = wire_twin(given_plan)
    assert msgspec.structs.replace(twin, pools=given_plan.pools) == given_plan
    for group, other in zip(groups, twin.pools, strict=True):
        assert other.driver is Driver.WIRE
        for field in msgspec.structs.fields(Pools):
            if field.name not in {"driver", *COUNTED, *OF_WAITING}:
                assert getattr(other, field.name) == getattr(group, field.name)


@given(GROUPS)
def test_the_wire_driver_accepts_the_wire_plan_of_every_valid_plan(
    groups: tuple[Pools, ...],
) -> None:
    given_plan = plan(*groups)
    check_plan(given_plan)
    assert plans_to_compare(given_plan) == {Driver.CLIENT: given_plan, Driver.WIRE: wire_twin(given_plan)}


@pytest.mark.parametrize("driver", [Driver.ASYNCIO, Driver.WIRE])
def test_pools_with_another_driver_are_refused(driver: Driver) -> None:
    with pytest.raises(UsageError, match=rf"--compare-drivers: .* got pools\[1\]\.driver {driver.value}$"):
        plans_to_compare(plan(Pools(name="a"), Pools(name="b", driver=driver)))


def test_a_plan_that_the_wire_driver_refuses_is_refused_with_its_error() -> None:
    with pytest.raises(PlanError, match=r"^--compare-drivers: .*commands: expected no SUBSCRIBE with the wire driver"):
        plans_to_compare(plan(commands=("PUBLISH", "SUBSCRIBE")))
    asked = Target(url="redis://127.0.0.1:6379", health_check_interval_s=Seconds(5))
    with pytest.raises(PlanError, match=r"^--compare-drivers: .*health_check_interval: expected 0s .* got 5s$"):
        plans_to_compare(plan(target=asked))


def test_a_load_without_an_end_is_refused() -> None:
    endless = msgspec.structs.replace(plan(), load=Load(duration_s=Seconds(0)))
    with pytest.raises(UsageError, match="expected a load with an end, because the runs follow each other"):
        plans_to_compare(endless)


def test_a_plan_with_scenarios_is_refused() -> None:
    plan = Plan(scenarios=(Scenario(name="reads"), Scenario(name="writes")))
    with pytest.raises(UsageError, match=r"--compare-drivers: expected a plan with one load, .* reads, writes"):
        plans_to_compare(plan)
