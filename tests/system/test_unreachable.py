"""All drivers on a cluster with an unreachable third: they report the same errors, and recover."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict

import yaml

from coordinator.journal.journal_file import read_journal
from coordinator.journal.records import FrameAccepted
from coordinator.report.run_files import JOURNAL_FILE
from tests.support.runs import Fleet, wait_until
from tests.support.shapes import start_cluster, uncovered

DRIVERS = {
    "client": {"threads_per_pool": 10, "client_instances_per_pool": 10, "max_connections": 1},
    "asyncio": {"tasks_per_pool": 10, "client_instances_per_pool": 10, "max_connections": 1},
    "wire": {"client_pools": 10, "max_connections": 1},
}
"""Each driver has ten workers, and so a third of the rate."""
RATE = 60
"""Operations per second of each driver."""
ENOUGH = 40
FAILURES = ("SlotNotCoveredError", "ConnectionError")

Ways = Counter[str]
"""Operations by the name of their error; "" for success."""


def seconds_of(fleet: Fleet) -> dict[str, dict[int, Ways]]:
    """The operations in the run's journal so far, by driver and second."""
    found: dict[str, dict[int, Ways]] = {driver: defaultdict(Counter) for driver in DRIVERS}
    journals = [path for run in fleet.runs if (path := run / JOURNAL_FILE).exists()]
    records = [record for path in journals for record in read_journal(path)]
    frames = (record.frame for record in records if isinstance(record, FrameAccepted))
    for interval in (interval for frame in frames for interval in frame.intervals):
        for driver, pool in interval.pools.items():
            for command in pool.commands.values():
                found[driver][interval.first].update(+Ways({"": command.ok, **command.errors, **command.failures}))
    return found


def until_all_report(fleet: Fleet, failure: str) -> None:
    """Wait until each driver has reported some operations with this error; "" for success."""

    def are_there() -> bool:
        return all(sum(ways[failure] for ways in seconds.values()) >= ENOUGH for seconds in seconds_of(fleet).values())

    wait_until(are_there, failure, 60, *fleet.commands.started)


def until_all_recover(fleet: Fleet) -> None:
    """Wait until each driver has had a whole second without an error, from now on."""
    now = max(max(seconds) for seconds in seconds_of(fleet).values())

    def are_fine() -> bool:
        return all(
            any(ways[""] == ways.total() >= RATE // 2 for second, ways in seconds.items() if second > now)
            for seconds in seconds_of(fleet).values()
        )

    wait_until(are_fine, "a second without an error for each driver", 60, *fleet.commands.started)


def test_all_drivers_report_the_same_errors_of_an_unreachable_third_and_recover(fleet: Fleet) -> None:
    with start_cluster(replicas=0) as cluster:
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        plan = {
            "target": {"url": cluster.url, "retry": {"retries": 0}},
            "pools": [{"name": driver, "driver": driver, **workers} for driver, workers in DRIVERS.items()],
            "workload": {"commands": [{"command": "SET"}], "keys": {"maximum": 10_000}},
            "load": {"duration": "120s", "rate": f"{3 * RATE}/s"},
        }
        (fleet.commands.directory / "plan.yaml").write_text(yaml.safe_dump(plan))
        running = fleet.commands.start("coordinator", "start", "plan.yaml", "--local-agents", "1", "--processes", "1")
        until_all_report(fleet, "")
        with uncovered(cluster, 0, 5460) as give_back:
            until_all_report(fleet, FAILURES[0])
            give_back()
        until_all_recover(fleet)
        cluster.nodes[2].kill()
        until_all_report(fleet, FAILURES[1])
        cluster.nodes[2].start_again()
        until_all_recover(fleet)
        running.signal(signal.SIGINT)
        ended = fleet.end(running)
        killed = cluster.nodes[2].port
    summary = ended.summary
    for driver, pool in ended.journal.totals.pools.items():
        failures = {name: command.failures.get(FAILURES[1], 0) for name, command in pool.primaries.items()}
        at_killed = sum(count for name, count in failures.items() if name.endswith(f":{killed}"))
        assert at_killed >= 0.98 * sum(failures.values()) > 0, (driver, failures)
        assert not any(FAILURES[0] in command.failures for command in pool.primaries.values()), driver
    operations, unsent = summary["totals"]["operations"], summary["load"]["unsent"]
    assert summary["ledger"]["issued"] == summary["ledger"]["counted"] == operations
    assert abs((operations + unsent) / summary["load"]["measured_s"] / (3 * RATE) - 1) < 0.03
    for driver, seconds in seconds_of(fleet).items():
        # Replies before clients know the topology, and connections that broke during the handshake.
        besides = {"", "CLUSTERDOWN", "handshake: ConnectionError"}
        assert {name for ways in seconds.values() for name in ways} - besides == {*FAILURES}, driver
        for failure in FAILURES:
            hit = sorted(second for second, ways in seconds.items() if ways[failure])
            ways = sum((seconds[second] for second in hit[1:-1]), Ways())
            share = 1 - ways[""] / ways.total()
            assert abs(share - 1 / 3) < 0.17, (
                driver,
                failure,
                ways,
                {second: dict(each) for second, each in seconds.items()},
            )
