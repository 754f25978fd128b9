from __future__ import annotations

from typing import Any

import msgspec
import pytest

from common.errors import PlanError
from common.plan.rules.checks import check_plan
from common.plan.schema import (
    Command,
    Driver,
    Fleet,
    Load,
    Plan,
    Pools,
    Preload,
    PubSub,
    SizeWeight,
    Target,
    Then,
    Values,
    Workload,
)
from common.units import Bytes, Seconds

PUBLISH, SUBSCRIBE = "PUBLISH __key__ __message__", "SUBSCRIBE __key__"
STANDALONE, CLUSTER = Target(url="redis://h"), Target(url="redis+cluster://h")


def plan_of(*commands: str, target: Target = STANDALONE, pools: Pools | None = None, **workload: Any) -> Plan:
    return Plan(
        target=target,
        pools=(pools or Pools(),),
        workload=Workload(commands=tuple(Command(command=command) for command in commands), **workload),
        load=Load(duration_s=Seconds(1)),
    )


def sizes(smallest: int) -> Values:
    return Values(minimum_bytes=Bytes(smallest), maximum_bytes=Bytes(100))


@pytest.mark.parametrize(
    ("plan", "refusal"),
    [
        (plan_of(SUBSCRIBE, pipeline=2), "$.workload.pipeline: expected 1 in a mix with SUBSCRIBE"),
        (plan_of("SUBSCRIBE", transaction=2), "$.workload.transaction: expected 0 in a mix with SUBSCRIBE"),
        (plan_of("SUBSCRIBE a b"), "$.workload.commands[0].command: expected one channel for each SUBSCRIBE, got 2"),
        (plan_of("SET __key__ __message__"), "[0].command: expected __message__ as the message of PUBLISH or SPUBLISH"),
        (plan_of("PUBLISH __message__ a"), "expected __message__ as the message of PUBLISH or SPUBLISH"),
        (plan_of(PUBLISH, SUBSCRIBE, values=sizes(31)), "$.workload.values.minimum: expected at least 32 bytes"),
        (
            plan_of(PUBLISH, SUBSCRIBE, values=Values(sizes=(SizeWeight(size=Bytes(64)), SizeWeight(size=Bytes(3))))),
            "$.workload.values.sizes[1].size: expected at least 32 bytes, the size of a message's header, got 3",
        ),
        (plan_of(SUBSCRIBE, target=CLUSTER), "expected SSUBSCRIBE in a cluster, as in profile pubsub_sharded"),
        (plan_of(PUBLISH, target=CLUSTER), "expected SPUBLISH in a cluster"),
        (plan_of("PSUBSCRIBE a*"), "expected a command that leaves its connection unchanged, got PSUBSCRIBE"),
        (
            plan_of(SUBSCRIBE, pools=Pools(driver=Driver.ASYNCIO, tasks_per_pool=3, max_connections=3)),
            "$.pools[0].max_connections: expected at least 4, because 3 tasks keep a connection of each client",
        ),
        (
            plan_of(SUBSCRIBE, pools=Pools(threads_per_pool=7, client_instances_per_pool=2, max_connections=4)),
            "$.pools[0].max_connections: expected at least 5, because 4 threads keep a connection of each client",
        ),
        (
            plan_of(SUBSCRIBE, pubsub=PubSub(grace_s=Seconds(11))),
            "$.workload.pubsub.grace: expected at most fleet.drain, 10s, after which all workers end, got 11s",
        ),
    ],
)
def test_a_plan_whose_publishers_or_subscribers_cannot_work_is_refused(plan: Plan, refusal: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_plan(plan)
    assert refusal in str(caught.value)


@pytest.mark.parametrize(
    "plan",
    [
        plan_of(PUBLISH, SUBSCRIBE),
        plan_of("PUBLISH", "SUBSCRIBE", "SPUBLISH", "SSUBSCRIBE", "GET"),
        plan_of("SPUBLISH __key__ __message__", "SSUBSCRIBE __key__", target=CLUSTER),
        plan_of("PUBLISH __key__ hello", target=CLUSTER),
        plan_of(PUBLISH, values=sizes(1), pipeline=5),
        plan_of(SUBSCRIBE, "PUBLISH a __data__", values=sizes(1)),
        plan_of(SUBSCRIBE, pools=Pools(threads_per_pool=7, client_instances_per_pool=2, max_connections=5)),
    ],
)
def test_a_plan_whose_publishers_and_subscribers_can_work_is_accepted(plan: Plan) -> None:
    check_plan(plan)


GET = (Command(command="GET"),)


@pytest.mark.parametrize(
    ("workload", "refusal"),
    [
        (
            Workload(commands=(Command(command="GET __key__", then=(Then(command=SUBSCRIBE),)),)),
            "commands[0].then[0].command: expected SUBSCRIBE only as a command of the mix",
        ),
        (
            Workload(commands=(Command(command="GET __key__", then=(Then(command=PUBLISH),)),)),
            "commands[0].then[0].command: expected PUBLISH only as a command of the mix",
        ),
        (Workload(commands=GET, setup=("SUBSCRIBE a",)), "setup[0]: expected SUBSCRIBE only as a command of the mix"),
        (Workload(commands=GET, setup=("PUBLISH a __message__",)), "setup[0]: expected only the placeholders"),
        (Workload(commands=GET, preload=(Preload(command=SUBSCRIBE),)), "preload[0].command: expected a command that"),
        (Workload(commands=GET, preload=(Preload(command=PUBLISH),)), "preload[0].command: expected a command that"),
    ],
)
def test_only_commands_of_the_mix_subscribe_or_publish_messages(workload: Workload, refusal: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_plan(msgspec.structs.replace(plan_of("GET"), workload=workload))
    assert f"$.workload.{refusal}" in str(caught.value)


def test_the_grace_must_not_exceed_the_drain() -> None:
    plan = plan_of(SUBSCRIBE, pubsub=PubSub(grace_s=Seconds(5)))
    check_plan(plan)
    with pytest.raises(PlanError, match=r"expected at most fleet\.drain, 1s"):
        check_plan(msgspec.structs.replace(plan, fleet=Fleet(drain_s=Seconds(1))))
