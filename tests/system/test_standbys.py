"""A standby agent takes over the share of a killed agent."""

from __future__ import annotations

from tests.support.runs import Fleet, calls, connections, local_agent
from tests.support.servers import Server

REQUESTS, RATE_PER_S = 10_000, 2_000


def test_a_standby_issues_the_remaining_requests_of_a_killed_agent(fleet: Fleet, valkey: Server) -> None:
    coordinator = fleet.coordinator(
        "--local-agents", "2", "--processes", "1", "--url", valkey.url, "--command", "INCR",
        "--requests", str(REQUESTS), "--rate", str(RATE_PER_S), "--on-agent-loss", "replace", "--tolerate-lost", "1",
    )  # fmt: skip
    for name in ("local-1", "local-2"):
        coordinator.wait_for_text(f"{name} joined")
    standby = fleet.agent("spare")
    fleet.until_loading()
    standby.wait_for_text("standing by")
    local_agent(coordinator, "local-1").kill()
    ended = fleet.end(coordinator)
    summary = ended.summary
    assert ended.code == 0
    assert summary["run"]["reason"] == "lost local-1 (replaced by spare)"
    agents = {agent["id"]: agent for agent in summary["agents"]}
    states = {name: agent["state"] for name, agent in agents.items()}
    assert states == {"local-1": "lost", "local-2": "finished", "spare": "finished"}
    assert agents["local-1"]["replaced_by"] == "spare"
    assert agents["spare"]["began_at_s"] == agents["local-1"]["replaced_at_s"] > 1.0
    assert f"local-1 replaced by spare at {agents['spare']['began_at_s']:.1f} s" in ended.finished.stdout
    # The report is exact. The server has also served operations that the killed agent had not reported.
    assert summary["totals"]["operations"] == sum(agent["operations"] for agent in agents.values()) == REQUESTS
    assert REQUESTS <= calls(valkey.client())["incr"] <= REQUESTS + 2 * RATE_PER_S
    # The standby did not send the operations of the gap late.
    assert summary["ledger"]["uncarried"] == 0
    assert agents["spare"]["start_skew_us"] < 1e6
    assert summary["totals"]["latency_us"]["response"]["p50"] < 1e6
    assert not connections(valkey.client())
