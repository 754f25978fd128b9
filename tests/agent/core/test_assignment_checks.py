from __future__ import annotations

import msgspec
import pytest

from agent.core.assignment_checks import AHEAD_NS, LATE_NS, Capacity, misfit, odd_start
from common.plan.schema import Connections, Driver, Embedded, Fleet, Plan, Pools
from common.protocol.messages import Assignment, PoolShare, TakeOver
from common.units import NS_PER_S, Seconds
from coordinator.core.dealt_plan import AgentCapacity, assign
from tests.support.protocol import fleet_plan

CAPACITY = Capacity(threads=10_000, open_files=5_000, memory_bytes=1 << 30)


def plan_of(*groups: Pools) -> Plan:
    return msgspec.structs.replace(fleet_plan(), pools=groups)


def share_of(plan: Plan, *pools: tuple[int, int, int], threads: int = 1000) -> Assignment:
    """pools: (group, number, first thread)."""
    return Assignment(plan=plan, pools=tuple(PoolShare(*pool) for pool in pools), threads_total=threads)


@pytest.mark.parametrize(
    "plan",
    [
        fleet_plan(pools=4),
        plan_of(Pools(threads_per_pool=3), Pools(name="others", driver=Driver.WIRE, max_connections=50)),
        plan_of(Pools(driver=Driver.ASYNCIO, tasks_per_pool=1000)),
        msgspec.structs.replace(
            fleet_plan(), pools=(Pools(client_pools=1000),), fleet=Fleet(per_agent=True, lease_s=Seconds(5))
        ),
        msgspec.structs.replace(
            fleet_plan(), target=msgspec.structs.replace(fleet_plan().target, embedded=Embedded.STANDALONE)
        ),
    ],
)
def test_a_share_as_a_coordinator_deals_it_fits(plan: Plan) -> None:
    agents = [AgentCapacity(f"web{number}", 3) for number in range(20)]
    for share in assign(plan, agents).assignments.values():
        assert misfit(share, 3, CAPACITY) == ""
        assert misfit(share, 3, Capacity()) == ""


TWO = plan_of(Pools(threads_per_pool=2))
BILLION = 10**9


@pytest.mark.parametrize(
    ("share", "problem"),
    [
        (share_of(TWO, (1, 0, 0)), "client pool 0: expected a group below 1, got 1"),
        (share_of(TWO, (2**53, 7, 0)), "client pool 7: expected a group below 1, got 9007199254740992"),
        (share_of(TWO, (0, 0, 0), (0, 1, 1)), "expected worker threads of their own for each client pool"),
        (share_of(TWO, (0, 0, 0), (0, 0, 2)), "expected client pools of different numbers"),
        (share_of(TWO, (0, 0, 999)), "expected worker threads below 1,000, the number in the fleet, got 1,000"),
        (share_of(TWO, (0, 0, 0), threads=0), "expected worker threads below 0"),
        (share_of(TWO, (0, 0, 0), threads=2**53), "expected at most 10,000,000,000 worker threads in the fleet"),
        (share_of(plan_of(Pools(threads_per_pool=BILLION)), (0, 0, 0), threads=BILLION),
         "plan: $.pools[0].threads_per_pool: expected at most 1000000 worker threads and tasks"),
        (share_of(plan_of(Pools(client_instances_per_pool=BILLION)), (0, 0, 0)),
         "plan: $.pools[0].client_instances_per_pool: expected at most 1000000 client instances"),
        (share_of(plan_of(Pools(driver=Driver.WIRE, max_connections=BILLION)), (0, 0, 0)),
         "a worker process may open 5,000 files (`ulimit -n`), but needs 1,000,000,064"),
        (share_of(plan_of(Pools(connections=Connections.PREWARM, max_connections=6000)), (0, 0, 0)),
         "a worker process may open 5,000 files (`ulimit -n`), but needs 6,064"),
        (share_of(plan_of(Pools(threads_per_pool=10_000)), (0, 0, 0), threads=10_000),
         "it needs 10,000 worker threads, but this machine allows 10,000 in all"),
        (share_of(plan_of(Pools(driver=Driver.ASYNCIO, tasks_per_pool=100_000)), (0, 0, 0), threads=100_000),
         "it needs at least 1563MiB of memory, but this machine has 1GiB"),
        (share_of(msgspec.structs.replace(TWO, fleet=Fleet(lease_s=Seconds(0))), (0, 0, 0)),
         "plan: $.fleet.lease: expected at least 2s"),
    ],
)  # fmt: skip
def test_a_share_that_makes_no_sense_or_is_too_much_for_this_machine_is_named(share: Assignment, problem: str) -> None:
    found = misfit((share,), 2, CAPACITY)
    assert problem in found
    assert found.isprintable()


def test_more_pools_than_any_plan_has_are_not_even_looked_at() -> None:
    pools = tuple(PoolShare(0, number, number) for number in range(100_001))
    share = Assignment(plan=TWO, pools=pools, threads_total=1)
    assert "expected at most 100,000 client pools" in misfit((share,), 2, CAPACITY)


NOW_NS = 1_000_000 * NS_PER_S


@pytest.mark.parametrize("off_ns", [-LATE_NS, -NS_PER_S, 0, 600_000_000, AHEAD_NS])
def test_a_start_about_now_is_taken(off_ns: int) -> None:
    assert odd_start(NOW_NS + off_ns, None, NOW_NS) == ""
    long_ago_ns = NOW_NS + off_ns - 86_400 * NS_PER_S
    assert odd_start(long_ago_ns, TakeOver(from_ns=86_400 * NS_PER_S), NOW_NS) == ""


@pytest.mark.parametrize(
    ("off_ns", "said"),
    [
        (AHEAD_NS + NS_PER_S, "got one 1m1s ahead"),
        (2**62, "ahead"),
        (-LATE_NS - NS_PER_S, "got one 1h1s back"),
        (-(2**62), "back"),
    ],
)
def test_a_start_in_another_age_is_refused(off_ns: int, said: str) -> None:
    found = odd_start(NOW_NS + off_ns, None, NOW_NS)
    assert found.startswith("expected a start instant at most 1m ahead or 1h back, got one ")
    assert said in found
