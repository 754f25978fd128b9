"""A coordinator is killed or suspended during a run, and the run goes on."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import psutil

from coordinator.report.utc import utc_text
from tests.support.runs import Fleet, calls, connections, local_agent, wait_until, worker_processes
from tests.support.servers import Server

MIX = ("SET", "GET", "DEL")


def server_calls(server: Server) -> int:
    counted = calls(server.client())
    return sum(counted.get(name.lower(), 0) for name in MIX)


def test_a_run_is_resumed_after_its_coordinator_was_killed_and_every_operation_counts_once(
    fleet: Fleet, valkey_with_password: Server
) -> None:
    valkey = valkey_with_password
    secret = {"SECRET": valkey.password or ""}
    agents = [fleet.agent(name, "--once") for name in ("a", "b")]
    killed = fleet.coordinator(
        "--expect-agents", "2", "--url", valkey.url, "--duration", "3s", "--password-env", "SECRET", **secret
    )
    fleet.until_loading()
    killed.signal(signal.SIGKILL)
    killed.wait()
    accepted = fleet.journal()
    assert accepted.closed is None
    assert accepted.started is not None
    assert accepted.started.t0_utc_ns is not None

    run = fleet.runs[-1].name
    ended = fleet.end(fleet.commands.start("coordinator", "start", "--resume", run, **secret))
    summary = ended.summary
    assert (ended.code, summary["run"]["outcome"], summary["run"]["id"]) == (0, "completed", run)
    assert summary["run"]["load_started_at"] == utc_text(accepted.started.t0_utc_ns)
    assert [agent["state"] for agent in summary["agents"]] == ["finished", "finished"]
    ledger = summary["ledger"]
    assert ledger["unaccounted"] == 0
    assert ledger["issued"] == ledger["counted"] == server_calls(valkey) == summary["totals"]["operations"]
    assert ledger["counted"] > accepted.totals.operations
    assert summary["verdict"]["level"] != "invalid"
    rows = (ended.folder / "timeseries.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(len(rows)))
    assert [agent.wait().returncode for agent in agents] == [0, 0]

    reported = fleet.commands.coordinator("report", run, "--format", "json")
    assert json.loads(reported.stdout) == summary
    other = fleet.commands.coordinator("start", "--resume", run, "--duration", "1h", **secret)
    assert (other.returncode, "expected no plan and no flags of a plan" in other.stderr) == (2, True)
    again = fleet.commands.coordinator("start", "--resume", run, **secret)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == f"coordinator: --resume {run}: that run has ended; see `coordinator report {run}`\n"


def test_a_resume_collects_a_run_that_ended_without_its_coordinator(fleet: Fleet, valkey: Server) -> None:
    killed = fleet.coordinator("--local-agents", "1", "--processes", "2", "--url", valkey.url, "--requests", "2000",
                               "--rate", "1k/s")  # fmt: skip
    fleet.until_loading()
    agent = local_agent(killed, "local-1")
    killed.signal(signal.SIGKILL)
    killed.wait()
    wait_until(lambda: not worker_processes(agent), "the end of the agent's workers")
    ended = fleet.end(fleet.commands.start("coordinator", "start", "--resume", "latest"))
    summary = ended.summary
    assert (ended.code, summary["run"]["outcome"]) == (0, "completed")
    assert summary["ledger"]["issued"] == summary["ledger"]["counted"] == server_calls(valkey) == 2000
    psutil.wait_procs([agent], timeout=10)
    assert not agent.is_running()


def test_a_coordinator_that_is_suspended_for_six_seconds_loses_no_operation(fleet: Fleet, valkey: Server) -> None:
    agents = [fleet.agent(name, "--once") for name in ("a", "b")]
    coordinator = fleet.coordinator("--expect-agents", "2", "--url", valkey.url, "--duration", "3s")
    fleet.until_loading()
    coordinator.signal(signal.SIGSTOP)
    # Longer than an agent may be silent, and longer than the timeout of ZeroMQ's own heartbeats.
    wait_until(lambda: all("lost the coordinator" in agent.stderr for agent in agents), "the notes of both agents")
    other = fleet.commands.coordinator("start", "--resume", "latest")
    assert (other.returncode, other.stdout) == (2, "")
    assert f"another coordinator (process {coordinator.process.pid} on " in other.stderr
    coordinator.signal(signal.SIGCONT)
    ended = fleet.end(coordinator)
    summary = ended.summary
    assert (ended.code, summary["run"]["outcome"]) == (0, "completed")
    assert summary["ledger"]["issued"] == summary["ledger"]["counted"] == server_calls(valkey)
    assert summary["ledger"]["unaccounted"] == 0
    assert "is lost" not in ended.finished.stderr
    assert [agent.wait().returncode for agent in agents] == [0, 0]


def test_a_resume_collects_results_that_were_not_reported_before_the_end(fleet: Fleet, valkey: Server) -> None:
    agent = fleet.agent("a", "--once")
    coordinator = fleet.coordinator("--expect-agents", "1", "--url", valkey.url, "--duration", "60s")
    fleet.until_loading()
    agent.signal(signal.SIGSTOP)
    for text in ("draining", "no results of a"):
        coordinator.signal(signal.SIGINT)
        coordinator.wait_for_text(text)
    ended = fleet.end(coordinator)
    assert (ended.code, ended.summary["run"]["reason"]) == (130, "lost a")
    reported = ended.summary["totals"]["operations"]
    agent.signal(signal.SIGCONT)
    agent.wait_for_text("lost the coordinator; trying to reach it again")

    collected = fleet.end(fleet.commands.start("coordinator", "start", "--resume", "latest"))
    summary = collected.summary
    assert (collected.code, summary["run"]["outcome"], summary["run"]["reason"]) == (130, "interrupted", "")
    assert "the run has ended: collecting results of a" in collected.finished.stderr
    assert [one["state"] for one in summary["agents"]] == ["finished"]
    assert summary["totals"]["operations"] == server_calls(valkey) > reported
    assert agent.wait().returncode == 0


def test_a_resume_ends_a_run_whose_embedded_server_died_with_its_coordinator(fleet: Fleet) -> None:
    killed = fleet.coordinator("--embedded-server", "--local-agents", "1", "--processes", "1", "--duration", "3s")
    fleet.until_loading()
    killed.signal(signal.SIGKILL)
    killed.wait()
    ended = fleet.end(fleet.commands.start("coordinator", "start", "--resume", "latest"), timeout=20)
    assert (ended.code, ended.summary["run"]["outcome"]) == (4, "degraded")
    assert "the target was lost in second" in ended.summary["run"]["reason"]
    assert ended.summary["totals"]["errors"] > 0
    assert "could not be read after the run" in ended.summary["ledger"]["note"]
    # The plan in the run folder still asks for an embedded server.
    planned = fleet.commands.coordinator("plan", str(ended.folder / "plan.yaml"), "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["plan"]["target"]["embedded"] == "standalone"


def test_a_full_disk_stops_the_load_at_once_and_a_resume_collects_the_results_of_the_agents(
    fleet: Fleet, valkey: Server
) -> None:
    agent = fleet.agent("a", "--once")
    program = Path(sys.executable).parent / "coordinator"
    # The limit of file sizes simulates a full disk.
    full = fleet.commands.start_shell(
        f"ulimit -f 10; exec {program} start --bind {fleet.endpoint} --url {valkey.url} --expect-agents 1 "
        "--local-agents 1 --processes 1 --duration 60s --rate 500"
    )
    finished = full.wait(40)
    assert finished.returncode == 2
    *_, last = finished.stderr.splitlines()
    run = fleet.runs[-1].name
    assert "journal: cannot write the journal: File too large (raise ulimit -f first)" in last
    assert f"`coordinator start --resume {run}` collects the results that its agents kept" in last
    assert "Totals" in finished.stdout
    accepted = fleet.journal()
    assert (accepted.closed, accepted.started is not None) == (None, True)
    wait_until(lambda: connections(valkey.client()) == 0, "no connection of a worker process")

    ended = fleet.end(fleet.commands.start("coordinator", "start", "--resume", "latest"))
    summary = ended.summary
    assert (ended.code, summary["run"]["outcome"]) == (5, "degraded")
    assert "agent a ended early: the coordinator failed: " in summary["run"]["reason"]
    assert [agent["state"] for agent in summary["agents"]] == ["finished", "finished"]
    ledger = summary["ledger"]
    assert (ledger["unaccounted"], ledger["issued"]) == (0, ledger["counted"])
    assert ledger["issued"] == server_calls(valkey) > accepted.totals.operations
    assert agent.wait().returncode == 0
