from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.plan.key_path import render
from common.plan.schema import Plan
from common.plan.validation import find_fault, type_at
from common.serde import from_builtins


def complaint(raw: Any) -> str:
    fault = find_fault(raw)
    assert fault is not None
    line = f"{render(fault.path)}: {fault.problem}"
    assert line.isprintable()
    return line


TOP_KEYS = "target, pools, workload, load, targets, scenarios, probe, visibility, percentiles, fleet, seed"


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ({"pools": [{}, {"threads_per_pool": "four"}]},
         '$.pools[1].threads_per_pool: expected a whole number >= 1, got "four"'),
        ({"pools": [{"threads_per_pool": 0}]}, "$.pools[0].threads_per_pool: expected a whole number >= 1, got 0"),
        ({"pools": [{"threads_per_pool": True}]},
         "$.pools[0].threads_per_pool: expected a whole number >= 1, got true"),
        ({"pools": []}, "$.pools: expected a list with at least one entry, got an empty list"),
        ({"pools": {"driver": "client"}}, "$.pools: expected a list with at least one entry, got a mapping"),
        ({"pools": [3]}, "$.pools[0]: expected a mapping with keys such as name, driver, client_pools, got 3"),
        ({"pools": [{"driver": "telepathy"}]},
         '$.pools[0].driver: expected one of client, asyncio, wire, got "telepathy"'),
        ({"pools": [{"connections": "warm"}]}, '$.pools[0].connections: expected one of lazy, prewarm, got "warm"'),
        ({"pools": [{"name": "a b"}]},
         '$.pools[0].name: expected a name of letters, digits, "_", "." and "-", got "a b"'),
        ({"pools": [{"name": "a\n"}]},
         '$.pools[0].name: expected a name of letters, digits, "_", "." and "-", got "a\\n"'),
        ({"target": {"protocol": 4}}, "$.target.protocol: expected a whole number from 2 to 3, got 4"),
        ({"fleet": {"per_agent": "yes"}}, '$.fleet.per_agent: expected true or false, got "yes"'),
        ({"load": {"duration": "soon"}},
         '$.load.duration: expected a duration such as "30s", "500ms" or "1m30s", got "soon"'),
        ({"load": {"requests": 10**30}}, f"$.load.requests: expected a number of at most 63 bits, got {10**30}"),
        ({"load": None}, "$.load: expected a mapping with keys such as duration, requests, rate, got nothing"),
        ({"seed": 2**64}, f"$.seed: expected a whole number >= 0, got {2**64}"),
        ({"workload": {"commands": [{}]}}, '$.workload.commands[0]: expected a key "command", got none'),
        ({"workload": {"commands": [{"command": "GET", "weight": -1}]}},
         "$.workload.commands[0].weight: expected a number >= 0, got -1"),
        ({"workload": {"commands": [{"command": "GET", "weight": float("nan")}]}},
         "$.workload.commands[0].weight: expected a number >= 0, got nan"),
        ({"workload": {"keys": {"prefix": "\udcff"}}}, '$.workload.keys.prefix: expected text, got "\\udcff"'),
        ({"pools": [{"thread_per_pool": 1}]},
         '$.pools[0].thread_per_pool: unknown key; did you mean "threads_per_pool"?'),
        ({"pools": [{"threads-per-pool": 1}]},
         '$.pools[0].threads-per-pool: unknown key; did you mean "threads_per_pool"?'),
        ({"load": {"xyz": 1}},
         "$.load.xyz: unknown key; expected one of duration, requests, rate, arrivals, warmup, stages"),
        ({"a\nb": 1}, f"$.***: unknown key; expected one of {TOP_KEYS}"),
        ({7: 1}, f"$: unknown key 7; expected one of {TOP_KEYS}"),
        ([], "$: expected a mapping with keys such as target, pools, workload, got an empty list"),
        ("plan", '$: expected a mapping with keys such as target, pools, workload, got text'),
    ],
)  # fmt: skip
def test_a_fault_names_the_place_the_value_and_what_would_be_right(raw: Any, line: str) -> None:
    assert complaint(raw) == line


def test_the_first_of_several_faults_is_named() -> None:
    assert complaint({"load": {"rate": "x"}, "seed": "y"}).startswith("$.load.rate: ")


def test_a_part_of_a_plan_is_checked_where_it_stands() -> None:
    fault = find_fault({"pipeline": 0}, ("workload",))
    assert fault is not None
    assert render(fault.path) == "$.workload.pipeline"


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.floats(-1, 5),
    st.sampled_from(["lazy", "client", "30s", "1k", "x"]),
)
KEYS = {
    "target": ["url", "password", "protocol", "socket_timeout", "client_name", "retry"],
    "workload": ["profile", "commands", "keys", "values", "pipeline", "transaction"],
    "load": ["duration", "requests", "rate", "arrivals"],
    "fleet": ["per_agent", "local_agents", "wait", "processes_per_local_agent"],
}
GROUP = st.dictionaries(st.sampled_from(["name", "driver", "client_pools", "connections", "max_connections"]), LEAVES)
COMMAND = st.dictionaries(st.sampled_from(["command", "weight", "key_prefix"]), LEAVES)
SECTIONS = {name: st.dictionaries(st.sampled_from(keys), LEAVES | st.lists(COMMAND)) for name, keys in KEYS.items()}
RAW_PLANS = st.fixed_dictionaries({}, optional={**SECTIONS, "pools": st.lists(GROUP) | LEAVES, "seed": LEAVES})


@given(RAW_PLANS)
def test_a_raw_plan_has_a_fault_if_and_only_if_the_schema_refuses_it(raw: Any) -> None:
    if find_fault(raw) is None:
        from_builtins(raw, Plan)
    else:
        with pytest.raises(msgspec.ValidationError):
            from_builtins(raw, Plan)


def test_a_path_that_the_schema_does_not_have_is_a_key_error() -> None:
    for path in (("load", "speed"), ("seed", "deeper")):
        with pytest.raises(KeyError):
            type_at(path)
