from __future__ import annotations

import pytest

from scripts.benchmark.fleet import FleetCost, fleet_cost, goal_results, table
from scripts.benchmark.simulated_agents import COMMANDS, OPERATIONS, interval_of
from tests.support.servers import Server


@pytest.mark.usefixtures("no_leaks")
def test_a_run_of_simulated_agents_ends_and_the_coordinator_is_measured(valkey: Server) -> None:
    cost = fleet_cost(valkey.url, agents=3, seconds=2)
    assert (cost.agents, cost.frames, cost.ignored) == (3, 6, "")
    assert 0 < cost.core < 2
    assert 0 < cost.ack_p50_ms <= cost.ack_p99_ms
    assert cost.start_ms > 0
    assert all(size > 1e6 for size in cost.rss_bytes)


def test_a_simulated_second_has_ten_commands_and_hundreds_of_filled_buckets() -> None:
    interval = interval_of(1)
    commands = interval.pools["main"].commands
    assert len(commands) == len(COMMANDS) == 10
    assert interval.issued == interval.operations == 10 * OPERATIONS
    assert sum(command.service.buckets()[0].size for command in commands.values()) > 300


def cost(agents: int, core: float) -> FleetCost:
    return FleetCost(
        agents=agents,
        seconds=10,
        core=core,
        frames=10 * agents,
        resent=0,
        ack_p50_ms=5.0,
        ack_p99_ms=50.0,
        reply_p99_ms=20.0,
        start_ms=100.0,
        rss_bytes=(100_000_000, 101_000_000, 102_000_000),
        ignored="",
    )


@pytest.mark.parametrize(
    ("core", "verdicts"),
    [(0.3, ["ok"] * 5), (0.36, ["MISSED", "ok", "ok", "ok", "ok"]), (0.5, ["MISSED"] + ["ok"] * 3 + ["MISSED"])],
)
def test_the_largest_fleet_has_goals_of_its_own_and_against_a_smaller_fleet(core: float, verdicts: list[str]) -> None:
    costs = [cost(10, 0.02), cost(100, 0.03), cost(1000, core)]
    assert [result.verdict for result in goal_results(costs)] == verdicts
    assert len(table(costs)) == 4
