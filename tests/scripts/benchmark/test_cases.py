from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.plan.schema import Connections, Driver, Target
from scripts.benchmark.cases import FIRST_KEY, KEY_PREFIX, Case, keys_that_fit, plan_for, short_prefix

TARGET = Target(url="redis://127.0.0.1:1")


@pytest.mark.parametrize("driver", list(Driver))
def test_the_plan_of_each_driver_has_the_connections_the_pipeline_and_the_keys_of_the_case(driver: Driver) -> None:
    plan = plan_for(Case(50, 10, 1024, 1000), driver, TARGET)
    [pools] = plan.pools
    workers = pools.workers_per_pool
    assert (pools.driver, pools.client_pools) == (driver, 1)
    if driver is Driver.WIRE:
        assert (workers, pools.max_connections, pools.connections) == (1, 50, Connections.PREWARM)
    else:
        assert (workers, pools.client_instances_per_pool) == (50, 50)
    assert plan.workload.pipeline == 10
    assert plan.workload.values.maximum_bytes == plan.workload.values.minimum_bytes == 1024
    assert plan.workload.keys.maximum - plan.workload.keys.minimum + 1 == 1000


@given(st.data(), st.integers(2, 10**12))
def test_resp_benchmark_draws_the_same_keys_as_the_others_or_shorter_ones(data: st.DataObject, keys: int) -> None:
    number = data.draw(st.integers(0, keys - 1))
    key = f"{short_prefix(keys)}{number}"
    if len(str(number)) == len(str(keys - 1)):
        assert key == f"{KEY_PREFIX}{FIRST_KEY + number}"
    else:
        assert len(key) < len(f"{KEY_PREFIX}{FIRST_KEY}")


def test_all_keys_are_used_if_they_fit_into_memory() -> None:
    assert keys_that_fit(10_000_000, 100, 20 * 2**30) == 10_000_000


@given(st.integers(1, 10**8), st.integers(1, 10**6), st.integers(0, 2**40))
def test_no_more_keys_are_used_than_fit_into_half_of_the_memory(keys: int, value_bytes: int, free_bytes: int) -> None:
    fitting = keys_that_fit(keys, value_bytes, free_bytes)
    assert 1 <= fitting <= keys
    assert fitting == 1 or fitting * value_bytes <= free_bytes / 2
