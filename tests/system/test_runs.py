"""Whole runs, compared with the server's own counters."""

from __future__ import annotations

import base64

import psutil
import pytest

from common.protocol.token import coordinator_credentials
from common.protocol.token_sources import TokenVariables
from tests.support.runs import Fleet, Outcome, calls
from tests.support.servers import Server

# The operations of each profile in percent.
PROFILES = {
    "basic_rw": {"SET": 40, "GET": 50, "DEL": 10},
    "high_throughput": {"SET": 40, "GET": 60},
    "list_operations": {"LPUSH": 40, "LRANGE": 40, "LPOP": 20},
    "transaction_heavy": {"SET": 30, "GET": 40, "INCR": 20, "DEL": 10},
}


def assert_accounted(ended: Outcome, server: Server, names: set[str]) -> None:
    """Check that workers, coordinator and server agree to the last operation. Reads the server's counters itself."""
    summary = ended.summary
    ledger, counted = summary["ledger"], calls(server.client())
    server_calls = {name: counted.get(name.lower(), 0) for name in names}
    assert ended.code == 0, ended.finished.stderr
    assert ledger["unaccounted"] == 0
    assert ledger["issued"] == ledger["counted"] == ledger["server_calls"] == sum(server_calls.values())
    assert {name: stats["ok"] for name, stats in summary["commands"].items()} == server_calls
    assert summary["totals"]["errors"] == 0
    assert summary["run"]["outcome"] == "completed"
    assert summary["verdict"]["level"] != "invalid"
    assert summary["connections"]["server_clients_before"] == summary["connections"]["server_clients_after"]


@pytest.fixture
def waiting_fleet(fleet: Fleet) -> Fleet:
    """Two agents with two worker processes each, which serve one run after the other."""
    for name in ("a", "b"):
        fleet.agent(name, processes=2)
    return fleet


def run_on(fleet: Fleet, server: Server, *args: str) -> Outcome:
    server.client().config_resetstat()
    return fleet.end(fleet.coordinator("--expect-agents", "2", "--url", server.url, *args))


def test_every_operation_of_every_profile_is_accounted_for(waiting_fleet: Fleet, valkey: Server) -> None:
    for profile, mix in PROFILES.items():
        # Neither pipelines nor threads divide 4003 evenly.
        ended = run_on(
            waiting_fleet, valkey, "--profile", profile, "--requests", "4003", "--threads-per-pool", "3",
            "--client-instances-per-pool", "2", "--key-maximum", "50", "--seed", "7",
        )  # fmt: skip
        assert_accounted(ended, valkey, set(mix))
        assert ended.summary["ledger"]["issued"] == 4003
        assert ended.summary["load"]["model"] == "closed"
        assert ended.summary["totals"]["latency_us"]["response"] is None
        for name, weight in mix.items():
            assert ended.summary["commands"][name]["operations"] / 4003 == pytest.approx(weight / 100, abs=0.05)
        counted = calls(valkey.client())
        transactions = ended.summary["ledger"]["transactions"]
        assert counted.get("multi", 0) == counted.get("exec", 0) == transactions
        assert bool(transactions) == (profile == "transaction_heavy")


def test_every_operation_of_a_run_by_duration_is_accounted_for(fleet: Fleet, valkey: Server) -> None:
    ended = fleet.run(
        "--local-agents", "2", "--processes", "2", "--url", valkey.url, "--duration", "2s", "--threads-per-pool", "2",
        "--data-size-range", "1-4KiB", "--pipeline", "4",
    )  # fmt: skip
    assert_accounted(ended, valkey, {"SET", "GET", "DEL"})
    assert ended.summary["run"]["duration_s"] == pytest.approx(2.0, abs=0.2)
    # Lazy pools open only the connections that their threads need at the same time.
    assert 4 <= ended.summary["connections"]["peak_open"] <= 8 < ended.summary["connections"]["ceiling"]
    totals = ended.summary["totals"]
    assert totals["ops_per_s"] == pytest.approx(totals["ok"] / ended.summary["run"]["duration_s"], rel=0.001)


@pytest.mark.parametrize(
    "load", [("--rate", "1k/s"), ("--pipeline", "10"), ("--transaction", "5")], ids=lambda load: " ".join(load)
)
def test_every_operation_of_a_run_with_asyncio_is_accounted_for(
    fleet: Fleet, valkey: Server, load: tuple[str, ...]
) -> None:
    ended = fleet.run(
        "--local-agents", "1", "--processes", "2", "--url", valkey.url, "--duration", "1s", "--driver", "asyncio",
        "--client-pools", "2", "--client-instances-per-pool", "2", "--tasks-per-pool", "4", *load,
    )  # fmt: skip
    assert_accounted(ended, valkey, {"SET", "GET", "DEL"})
    assert ended.summary["connections"]["drops"] == {}
    # Four tasks share two client instances, each with one connection at a time.
    assert 2 <= ended.summary["connections"]["peak_open"] <= 4
    assert bool(ended.summary["ledger"]["transactions"]) == ("--transaction" in load)
    if "--rate" in load:
        assert ended.summary["ledger"]["issued"] == pytest.approx(1000, abs=10)
    assert ended.finished.stderr.count("Task was destroyed") == ended.finished.stderr.count("Warning") == 0


def test_an_open_loop_keeps_its_rate_and_measures_response_times(waiting_fleet: Fleet, valkey: Server) -> None:
    # Four standard deviations of a Poisson count; a constant rate has no randomness.
    for arrivals, allowed in (("constant", 2000 * 0.01), ("poisson", 4 * 2000**0.5)):
        ended = run_on(
            waiting_fleet, valkey, "--rate", "1k/s", "--arrivals", arrivals, "--duration", "2s",
            "--threads-per-pool", "2",
        )  # fmt: skip
        assert_accounted(ended, valkey, {"SET", "GET", "DEL"})
        summary = ended.summary
        assert summary["ledger"]["issued"] == pytest.approx(2000, abs=allowed)
        load = summary["load"]
        assert (load["model"], load["arrivals"], load["target_rate_per_s"]) == ("open", arrivals, 1000.0)
        latency = summary["totals"]["latency_us"]
        assert latency["response"]["count"] == latency["service"]["count"] == summary["totals"]["ok"]
        # Only response time includes the wait before the send.
        assert latency["response"]["p50"] >= latency["service"]["p50"]
        assert latency["response"]["max"] >= latency["service"]["max"]


def test_agents_with_a_token_serve_one_run_after_the_other(fleet: Fleet, valkey: Server) -> None:
    fleet.token.unlink()
    fleet.token.with_name("token.key").unlink()
    first = fleet.coordinator("--expect-agents", "2", "--url", valkey.url, "--requests", "1000")
    first.wait_for_text("listening on")
    assert fleet.token.stat().st_mode & 0o777 == 0o600
    stays, leaves = fleet.agent("stays", processes=2), fleet.agent("leaves", "--once")
    assert_accounted(fleet.end(first), valkey, {"SET", "GET", "DEL"})
    assert leaves.wait().returncode == 0
    stays.wait_for_text("waiting for the next")
    valkey.client().config_resetstat()

    second = fleet.coordinator("--expect-agents", "1", "--url", valkey.url, "--requests", "500", "--ratio", "1:3")
    ended = fleet.end(second)
    assert_accounted(ended, valkey, {"SET", "GET"})
    assert [agent["id"] for agent in ended.summary["agents"]] == ["stays"]
    assert ended.summary["ledger"]["issued"] == 500
    assert "without encryption" not in ended.finished.stderr
    assert stays.process.poll() is None


def test_a_password_reaches_the_agents_but_no_file_and_no_output(fleet: Fleet, valkey_with_password: Server) -> None:
    server = valkey_with_password
    assert server.password is not None
    running = fleet.commands.start(
        "coordinator", "start", "--local-agents", "1", "--processes", "1", "--url", server.url, "--requests", "100",
        "--password-env", "SECRET", "--json", SECRET=server.password,
    )  # fmt: skip
    ended = fleet.end(running)
    assert_accounted(ended, server, {"SET", "GET", "DEL"})
    written = [path.read_bytes() for path in fleet.commands.directory.rglob("*") if path.is_file()]
    assert len(written) >= 6
    assert not [text for text in written if server.password.encode() in text]


def test_a_token_in_the_environment_needs_no_file_and_reaches_no_child_process(fleet: Fleet) -> None:
    keys = coordinator_credentials(fleet.token, TokenVariables(), {})
    key = fleet.token.with_name("token.key").read_text()
    fleet.token.unlink()
    fleet.token.with_name("token.key").unlink()
    start = ("start", "--bind", fleet.endpoint, "--embedded-server", "--expect-agents", "1", "--local-agents", "1")
    few = ("--processes", "1", "--duration", "2s")
    coordinator = fleet.commands.start("coordinator", *start, *few, STAMPEDE_TOKEN_KEY=key)
    join = ("join", fleet.endpoint, "--name", "a", "--processes", "1", "--once")
    agent = fleet.commands.start("agent", *join, STAMPEDE_TOKEN=base64.b64encode(keys.token.encode()).decode())
    agent.wait_for_text("running")
    started = [
        child for one in (coordinator, agent) for child in psutil.Process(one.process.pid).children(recursive=True)
    ]
    assert len(started) >= 4
    assert not [child for child in started if "STAMPEDE_TOKEN" in " ".join(child.environ())]
    assert fleet.end(coordinator).code == agent.wait().returncode == 0
    assert not fleet.token.exists()
    secrets = [pair.secret for pair in (keys.coordinator.keys, keys.agents.keys)]
    written = [path.read_bytes() for path in fleet.commands.directory.rglob("*") if path.is_file()]
    assert not [text for text in written if any(secret in text for secret in secrets)]


def test_every_operation_belongs_to_its_stage_and_is_accounted_for(waiting_fleet: Fleet, valkey: Server) -> None:
    ended = run_on(
        waiting_fleet, valkey, "--warmup", "1s", "--stage", "1s", "--stage", "even=2s@500/s",
        "--stage", "ramp=2s@1500/s:linear", "--threads-per-pool", "2",
    )  # fmt: skip
    assert ended.code == 0, ended.finished.stderr
    summary, counted = ended.summary, calls(valkey.client())
    stages = {stage["name"]: stage for stage in summary["stages"]}
    assert list(stages) == ["warmup", "stage 1", "even", "ramp"]
    done = {name: stage["stats"]["operations"] for name, stage in stages.items()}
    # Only operations that were due at the very end may be unsent.
    assert done["even"] == 1000
    assert done["ramp"] + stages["ramp"]["unsent"] == 2000
    assert stages["ramp"]["unsent"] <= 8
    assert min(done["warmup"], done["stage 1"]) > 0
    assert [(stage["begin_s"], stage["model"]) for stage in summary["stages"]] == [
        (0.0, "closed"), (1.0, "closed"), (2.0, "open"), (4.0, "open"),
    ]  # fmt: skip
    ledger = summary["ledger"]
    assert ledger["unaccounted"] == 0
    assert ledger["issued"] == ledger["server_calls"] == sum(done.values())
    assert ledger["issued"] == sum(counted.get(name, 0) for name in ("set", "get", "del"))
    assert summary["totals"]["operations"] == ledger["issued"] - done["warmup"]
    assert summary["totals"]["latency_us"]["response"]["count"] == done["even"] + done["ramp"]
    assert summary["load"]["measured_s"] == pytest.approx(5.0, abs=0.2)
    assert summary["run"]["duration_s"] == pytest.approx(6.0, abs=0.2)
    assert summary["verdict"]["level"] != "invalid"
