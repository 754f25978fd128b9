from __future__ import annotations

from typing import Any

import pytest

from common.errors import PlanError
from common.plan.rules.checks import check_plan
from common.plan.schema import Cluster, Command, Embedded, Load, Plan, ReadFrom, Target, Workload
from common.units import Seconds


def check(**target: Any) -> None:
    read_from = target.pop("read_from", ReadFrom.PRIMARY)
    check_plan(
        Plan(
            target=Target(**({"url": "redis://h"} | target), cluster=Cluster(read_from=read_from)),
            workload=Workload(commands=(Command(command="GET"),)),
            load=Load(duration_s=Seconds(1)),
        )
    )


@pytest.mark.parametrize(
    "target",
    [
        *({"replicas": ("a", "b:7000", "[::1]:7000"), "read_from": each} for each in ReadFrom),
        *({"url": "redis+sentinel://h/x", "read_from": each} for each in (ReadFrom.PRIMARY, ReadFrom.REPLICAS)),
        *({"url": "redis+cluster://h", "read_from": each} for each in ReadFrom),
        {"url": "rediss://h", "replicas": ("h:6380",), "read_from": ReadFrom.ANY},
    ],
)
def test_reads_may_go_to_replicas_that_the_plan_or_the_target_lists(target: dict[str, Any]) -> None:
    check(**target)


@pytest.mark.parametrize(
    ("target", "refusal"),
    [
        ({"url": "redis+cluster://h", "replicas": ("a",)}, "replicas: expected only with a target of redis:// or"),
        ({"url": "redis+sentinel://h/x", "replicas": ("a",)}, "clusters and Sentinels list replicas themselves"),
        ({"url": "unix:///x", "replicas": ("a",)}, "replicas: expected only with a target of redis:// or rediss://"),
        ({"url": "", "embedded": Embedded.STANDALONE, "replicas": ("a",)}, "replicas: expected only with a target of"),
        ({"replicas": ("a:99999",)}, 'replicas[0]: expected HOST:PORT such as "10.0.0.2:6379", got "a:99999"'),
        ({"replicas": ("a", "a:6379")}, 'replicas[1]: expected each server once, and not the target\'s, got "a:6379"'),
        ({"replicas": ("h",)}, 'replicas[0]: expected each server once, and not the target\'s, got "h"'),
        (
            {"url": "redis+sentinel://h/x", "read_from": ReadFrom.ANY},
            "read_from: expected primary or replicas behind Sentinels, got any",
        ),
        (
            {"read_from": ReadFrom.REPLICAS},
            "read_from: expected only with a target of redis+cluster:// or redis+sentinel://, or with replicas, got",
        ),
    ],
)
def test_replicas_that_do_not_fit_the_target_are_refused(target: dict[str, Any], refusal: str) -> None:
    with pytest.raises(PlanError) as refused:
        check(**target)
    assert refusal in str(refused.value)
