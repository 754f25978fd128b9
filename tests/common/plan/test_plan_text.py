from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from common.plan.key_path import in_plan
from common.plan.loading.layers import Layer, merge, raw_plan_layer
from common.plan.loading.sources import parse_plan_file
from common.plan.plan_text import plan_hash, plan_yaml
from common.plan.schema import (
    Arrivals,
    BackoffKind,
    Command,
    Connections,
    Embedded,
    Fleet,
    Keys,
    Load,
    Plan,
    Pools,
    Retry,
    Target,
    Values,
    Workload,
)
from common.serde import from_builtins, to_builtins
from common.units import Bytes, Count, PerSecond, Seconds

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,9}", fullmatch=True)
SECONDS = st.floats(0, 1e6).map(Seconds)
SIZES = st.integers(0, 2**40).map(Bytes)
COUNTS = st.integers(0, 2**63 - 1).map(Count)
AT_LEAST_ONE = st.integers(1, 10**6)


def _layer(plan: Plan) -> Layer:
    return raw_plan_layer(parse_plan_file(plan_yaml(plan).encode(), "plan.yaml"), in_plan)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


POOLS = st.builds(
    Pools, name=NAME, client_pools=maybe(AT_LEAST_ONE), client_instances_per_pool=AT_LEAST_ONE,
    threads_per_pool=AT_LEAST_ONE, max_connections=AT_LEAST_ONE, connections=st.sampled_from(Connections),
    checkout_timeout_s=SECONDS,
)  # fmt: skip
TARGETS = st.builds(
    Target, url=TEXT, username=maybe(TEXT), password_env=maybe(NAME), protocol=st.sampled_from([2, 3]),
    client_name=maybe(NAME), socket_timeout_s=SECONDS,
    retry=st.builds(Retry, retries=st.integers(0, 99), backoff=st.sampled_from(BackoffKind), base_s=SECONDS),
)  # fmt: skip
WORKLOADS = st.builds(
    Workload, profile=maybe(NAME), pipeline=AT_LEAST_ONE, transaction=st.integers(0, 9),
    commands=st.lists(
        st.builds(Command, command=TEXT, weight=st.floats(0, 1e9), key_prefix=maybe(TEXT)), max_size=3
    ).map(tuple),
    keys=st.builds(Keys, prefix=TEXT, minimum=COUNTS, maximum=COUNTS),
    values=st.builds(Values, minimum_bytes=SIZES, maximum_bytes=SIZES),
)  # fmt: skip
LOADS = st.builds(
    Load, duration_s=maybe(SECONDS), requests=maybe(COUNTS), arrivals=st.sampled_from(Arrivals),
    rate_per_s=maybe(st.floats(1e-3, 1e12).map(PerSecond)),
)  # fmt: skip
FLEETS = st.builds(
    Fleet, expect_agents=st.integers(0, 9), processes_per_local_agent=maybe(AT_LEAST_ONE), per_agent=st.booleans(),
    lease_s=SECONDS,
)  # fmt: skip
PLANS = st.builds(
    Plan, target=TARGETS, pools=st.lists(POOLS, min_size=1, max_size=3).map(tuple), workload=WORKLOADS, load=LOADS,
    fleet=FLEETS, seed=st.integers(0, 2**63 - 1),
)  # fmt: skip


@given(PLANS)
def test_the_yaml_of_any_plan_loads_as_the_same_plan(plan: Plan) -> None:
    layer = _layer(plan)
    assert from_builtins(merge([layer]).raw_plan(), Plan) == plan


@given(PLANS)
def test_only_equal_plans_have_equal_hashes(plan: Plan) -> None:
    assert plan_hash(plan) == plan_hash(from_builtins(to_builtins(plan), Plan))
    other = msgspec.structs.replace(plan, seed=plan.seed // 2 + 1 if plan.seed != 1 else 0)
    assert (plan_hash(plan) == plan_hash(other)) == (plan == other)


def test_the_yaml_of_an_embedded_run_can_be_run_again() -> None:
    ran = Plan(target=Target(url="redis://127.0.0.1:40001", embedded=Embedded.STANDALONE))
    again = from_builtins(merge([_layer(ran)]).raw_plan(), Plan)
    assert (again.target.url, again.target.embedded) == ("", Embedded.STANDALONE)


@example("\x85")
@given(TEXT)
def test_any_text_survives_the_yaml(prefix: str) -> None:
    plan = Plan(workload=Workload(keys=Keys(prefix=prefix)))
    assert from_builtins(merge([_layer(plan)]).raw_plan(), Plan) == plan


def test_neither_yaml_nor_hash_depend_on_the_password() -> None:
    plans = [Plan(target=Target(url="redis://h", password=password)) for password in ("a secret", "other")]
    assert plan_hash(plans[0]) == plan_hash(plans[1]) != plan_hash(Plan(target=Target(url="redis://h")))
    assert "password: '***'" in plan_yaml(plans[0])
    assert "a secret" not in plan_yaml(plans[0])


def test_the_yaml_has_the_passwords_source_instead_of_the_password() -> None:
    text = plan_yaml(Plan(target=Target(url="redis://h", password="x", password_env="PW")))
    assert "password_env: PW" in text
    assert "password:" not in text


def test_quantities_are_written_as_people_write_them() -> None:
    plan = Plan(load=Load(duration_s=Seconds(90), rate_per_s=PerSecond(50_000)), workload=Workload(values=Values()))
    text = plan_yaml(plan)
    assert "duration: 1m30s" in text
    assert "rate: 50k/s" in text
    assert "minimum: 32B" in text
