from __future__ import annotations

import msgspec
import pytest

from common.plan.open_files import SPARE_FILES, USUAL_FILES, Needed, needed, pools_by_process, shortage, shortage_note
from common.plan.schema import Connections, Driver, Plan, Pools
from common.protocol.messages import PoolShare
from tests.support.protocol import fleet_plan


def plan_of(*groups: Pools) -> Plan:
    return msgspec.structs.replace(fleet_plan(), pools=groups)


def shares(*groups: int) -> tuple[PoolShare, ...]:
    return tuple(PoolShare(group=group, number=number, first_thread=number) for number, group in enumerate(groups))


CALLS = Pools(client_instances_per_pool=5, threads_per_pool=3, max_connections=50)
PREWARMED = msgspec.structs.replace(CALLS, connections=Connections.PREWARM)
WIRE = Pools(driver=Driver.WIRE, client_instances_per_pool=2, max_connections=50)


def test_calls_need_a_connection_for_each_worker_that_can_have_a_client_instance() -> None:
    assert needed(plan_of(CALLS), shares(0, 0)) == Needed(as_needed=6)
    few = msgspec.structs.replace(CALLS, client_instances_per_pool=2)
    assert needed(plan_of(few), shares(0)) == Needed(as_needed=2)


def test_the_wire_driver_and_prewarming_need_all_connections_at_once() -> None:
    assert needed(plan_of(WIRE), shares(0)) == Needed(all_at_once=100)
    assert needed(plan_of(CALLS, PREWARMED, WIRE), shares(0, 1, 2)) == Needed(all_at_once=350, as_needed=3)


def test_pools_are_assigned_to_processes_in_turn() -> None:
    pools = shares(0, 0, 0, 0, 0)
    assert pools_by_process(pools, 2) == [(pools[0], pools[2], pools[4]), (pools[1], pools[3])]
    assert pools_by_process(pools[:1], 3) == [pools[:1]]
    assert pools_by_process((), 3) == []


def test_a_shortage_is_reported_with_its_numbers() -> None:
    assert shortage(1024, 20, 1024 - 20 - SPARE_FILES) == ""
    assert shortage(None, 20, 10**6) == ""
    assert shortage(1024, 20, 2000) == (
        "may open 1,024 files (`ulimit -n`), but needs 2,052: 2,000 connections and 52 others"
    )


@pytest.mark.parametrize(("nodes", "fits"), [(1, True), (6, False)])
def test_calls_that_may_need_too_many_connections_give_a_note(nodes: int, fits: bool) -> None:
    limit = SPARE_FILES + USUAL_FILES + 6
    found = shortage_note(plan_of(CALLS), shares(0, 0), limit, nodes)
    assert (found == "") is fits
    if not fits:
        assert found.startswith(f"a worker process may open {limit} files (`ulimit -n`), but needs {limit + 30}: ")


def test_no_note_about_connections_that_the_worker_process_refuses_itself() -> None:
    assert shortage_note(plan_of(WIRE), shares(0), 10) == ""
