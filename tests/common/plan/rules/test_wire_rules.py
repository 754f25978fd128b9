from __future__ import annotations

from typing import Any

import msgspec
import pytest

from common.errors import PlanError
from common.plan.rules.checks import check_plan
from common.plan.schema import (
    Cluster,
    Command,
    Driver,
    Load,
    Plan,
    Pools,
    ReadFrom,
    Retry,
    RetryError,
    Target,
    TcpPool,
    Workload,
)
from common.units import Seconds


def plan_of(*commands: str, driver: Driver = Driver.WIRE, pools: dict[str, Any] | None = None, **target: Any) -> Plan:
    return Plan(
        target=Target(**({"url": "redis://h"} | target)),
        pools=(Pools(driver=driver, **(pools or {})),),
        workload=Workload(commands=tuple(Command(command=command) for command in commands or ("GET",))),
        load=Load(duration_s=Seconds(1)),
    )


REFUSED = [
    (
        {"pools": {"checkout_timeout_s": Seconds(1)}},
        "$.pools[0].checkout_timeout: expected none with the wire driver, which has no client instances to check "
        "out, got 1",
    ),
    (
        {"pools": {"tcp_pool": TcpPool.BLOCKING}},
        "$.pools[0].tcp_pool: expected raising with the wire driver, which takes every connection once and never waits "
        "for one, got blocking",
    ),
    (
        {"retry": Retry(errors=(RetryError.CONNECTION, RetryError.READ_ONLY))},
        "$.target.retry.errors: expected ConnectionError, TimeoutError with the wire driver, which reconnects but "
        "never issues an operation twice, got ReadOnlyError",
    ),
    (
        {"health_check_interval_s": Seconds(3)},
        "$.target.health_check_interval: expected 0s with the wire driver, which sends nothing but the load on its "
        "connections, got 3",
    ),
    (
        {"url": "redis+cluster://h", "cluster": Cluster(read_from=ReadFrom.ANY)},
        "$.target.cluster.read_from: expected primary with the wire driver, which sends each command to a primary, "
        "got any",
    ),
]


@pytest.mark.parametrize(
    ("settings", "refusal"), REFUSED, ids=lambda value: "" if isinstance(value, str) else next(iter(value))
)
def test_settings_that_only_redis_py_follows_are_refused_for_the_wire_driver_only(
    settings: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(PlanError) as refused:
        check_plan(plan_of(**settings))
    assert refusal in str(refused.value)
    check_plan(plan_of(driver=Driver.CLIENT, **settings))


@pytest.mark.parametrize("command", ["SUBSCRIBE __key__", "SSUBSCRIBE a"])
def test_subscribers_are_refused(command: str) -> None:
    with pytest.raises(PlanError, match="expected no SUBSCRIBE with the wire driver, whose connections receive only"):
        check_plan(plan_of("PUBLISH a b", command))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"retry": Retry(retries=0)},
        {"retry": Retry(errors=(RetryError.TIMEOUT,))},
        {"url": "redis+cluster://h"},
        {"url": "redis+sentinel://h/primary"},
        {"url": "unix:///tmp/redis.sock"},
        {"protocol": 2},
        {"pools": {"max_connections": 500, "client_instances_per_pool": 3, "client_pools": 2}},
    ],
    ids=str,
)
def test_a_plan_with_other_settings_is_accepted(settings: dict[str, Any]) -> None:
    check_plan(plan_of("SET", "GET", **settings))


def test_a_command_that_blocks_is_accepted() -> None:
    check_plan(plan_of("SET a b", "BLPOP __key__ 1"))


def test_a_single_pool_with_the_wire_driver_is_refused() -> None:
    plan = plan_of(driver=Driver.CLIENT, health_check_interval_s=Seconds(3))
    check_plan(plan)
    mixed = msgspec.structs.replace(plan, pools=(*plan.pools, Pools(name="other", driver=Driver.WIRE)))
    with pytest.raises(PlanError, match="health_check_interval"):
        check_plan(mixed)
    late = msgspec.structs.replace(plan.pools[0], name="b", driver=Driver.WIRE, tcp_pool=TcpPool.BLOCKING)
    second = msgspec.structs.replace(plan_of(driver=Driver.CLIENT), pools=(Pools(name="a"), late))
    with pytest.raises(PlanError, match=r"\$\.pools\[1\]\.tcp_pool"):
        check_plan(second)
