"""Delays of the load machine without high CPU use: stopped processes and CPU quotas."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from common.clock import monotonic_ns
from common.plan.schema import Driver
from common.units import NS_PER_S
from tests.support.cgroups import quota_group, set_quota
from tests.support.runs import Fleet, wait_until, worker_processes
from tests.support.servers import Server

STOP_S = 1.2


@pytest.fixture
def plan(fleet: Fleet, valkey: Server) -> str:
    """A plan with a pool of each driver. An agent with three processes runs each pool in its own process."""
    path = fleet.commands.directory / "plan.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "target": {"url": valkey.url},
                "pools": [{"name": driver.value, "driver": driver.value, "client_pools": 1} for driver in Driver],
                "load": {"duration": "60s"},
                "fleet": {"expect_agents": 1},
            }
        )
    )
    return str(path)


def pause_process(process: psutil.Process) -> None:
    process.suspend()
    until_ns = monotonic_ns() + round(STOP_S * NS_PER_S)
    wait_until(lambda: monotonic_ns() >= until_ns, "the time to pass", STOP_S + 10)
    process.resume()


def test_stopped_processes_make_a_run_suspect_with_every_driver(fleet: Fleet, plan: str) -> None:
    coordinator = fleet.coordinator(plan, "--rate", "300/s")
    agent = psutil.Process(fleet.agent("a", "--once", processes=len(Driver)).process.pid)
    fleet.until_loading()
    workers = worker_processes(agent)
    assert len(workers) == len(Driver)
    for process in (*workers, agent):
        pause_process(process)
    reached = max(fleet.journal().seconds)
    fleet.until_loading(reached + 3)
    coordinator.signal(signal.SIGINT)
    ended = fleet.end(coordinator)
    generator, reasons = ended.summary["generator"], ended.summary["verdict"]["reasons"]
    assert ended.summary["verdict"]["level"] == "suspect"
    assert any("A worker process of agent a did not run for" in reason for reason in reasons), reasons
    assert any("An agent's own loop was blocked for" in reason for reason in reasons), reasons
    assert generator["stall_max_s"] > 1.0
    assert generator["stall_at_s"] > 0.9
    assert generator["limit"]
    # The processes stopped one after the other, so the sum proves that all of them count.
    [stage] = ended.journal.stages
    assert stage.delays["a"].stalled_ns > (len(Driver) - 1) * STOP_S * NS_PER_S


def test_the_load_of_a_stopped_agent_ends_with_its_lease(fleet: Fleet, plan: str) -> None:
    document = yaml.safe_load(Path(plan).read_text())
    for pools in document["pools"]:
        pools["client_pools"] = len(Driver) + 1  # so that each worker process has every driver
    document["fleet"]["expect_agents"] = 2
    Path(plan).write_text(yaml.safe_dump(document))
    coordinator = fleet.coordinator(plan, "--rate", "600/s", "--lease", "3s")
    agent = fleet.agent("a", "--once", processes=len(Driver))
    other = fleet.agent("b", "--once")
    fleet.until_loading()
    workers = worker_processes(psutil.Process(agent.process.pid))
    assert len(workers) == len(Driver)
    assert all(open_connections(worker) for worker in workers)
    agent.process.send_signal(signal.SIGSTOP)
    # The worker processes still run, and receive no message that ends the load.
    wait_until(lambda: not any(open_connections(worker) for worker in workers), "no connection of a worker process")
    agent.process.send_signal(signal.SIGCONT)
    # The results arrive after the agent continues.
    assert agent.wait().returncode == 0
    coordinator.signal(signal.SIGINT)
    ended = fleet.end(coordinator)
    assert other.wait().returncode == 0
    assert "agent a ended early: its own process did not run for" in ended.summary["run"]["reason"]
    ledger = ended.summary["ledger"]
    assert ledger["issued"] == ledger["counted"] == ledger["server_calls"] > 0


def open_connections(worker: psutil.Process) -> int:
    """Count the TCP connections of a worker process; 0 after its end."""
    if not worker.is_running():
        return 0
    with suppress(psutil.NoSuchProcess):  # it has just ended
        return sum(found.status == psutil.CONN_ESTABLISHED for found in worker.net_connections("tcp"))
    return 0


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group whose quota limits nothing yet. Request it before `fleet`: its processes must leave first."""
    with quota_group(cores=64) as made:
        yield made


def throttled_periods(fleet: Fleet) -> int:
    [stage] = fleet.journal().stages
    return sum(delays.throttled_periods for delays in stage.delays.values())


def test_a_cpu_quota_that_throttles_an_agent_makes_the_run_suspect(group: Path, fleet: Fleet, plan: str) -> None:
    coordinator = fleet.coordinator(plan)
    agent = fleet.agent("a", "--once", processes=len(Driver))
    (group / "cgroup.procs").write_text(str(agent.process.pid))
    fleet.until_loading()
    set_quota(group, cores=0.1)
    wait_until(lambda: throttled_periods(fleet) >= 5, "periods in which the agent is throttled")
    set_quota(group, cores=64)
    coordinator.signal(signal.SIGINT)
    ended = fleet.end(coordinator)
    agent.wait(30)
    [limited] = ended.summary["agents"]
    generator, verdict = ended.summary["generator"], ended.summary["verdict"]
    assert limited["quota_cores"] > 0
    assert limited["quota_percent_mean"] > 0
    assert 0 < generator["throttled_periods"] <= generator["quota_periods"]
    assert generator["throttled_s"] > 0
    assert any("Agent a was throttled by its CPU quota" in reason for reason in verdict["reasons"]), verdict
    assert verdict["level"] == "suspect"
