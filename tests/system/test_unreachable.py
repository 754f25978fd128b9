"""The drivers side by side on a cluster of which a part cannot be reached: they report the same, and go on when it is
back."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.runs import Fleet, Outcome
from tests.support.shapes import Group, start_cluster, uncovered, until

RATE, SECONDS = 60, 8
WORKERS = {
    "client": ("--threads-per-pool", "20"),
    "asyncio": ("--tasks-per-pool", "20"),
    "wire": ("--max-connections", "5"),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Group]:
    """It goes on with the slots that are served."""
    with start_cluster(replicas=0) as group:
        for node in group.nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        yield group


@contextmanager
def without_slots(cluster: Group) -> Iterator[Callable[[], None]]:
    with uncovered(cluster, 0, 5460) as give_back:
        yield give_back


@contextmanager
def without_a_primary(cluster: Group) -> Iterator[Callable[[], None]]:
    victim = cluster.nodes[2]
    victim.kill()
    yield victim.start_again


def seconds_of(ended: Outcome) -> list[tuple[int, int]]:
    """(operations, errors) of each second."""
    with (ended.folder / "timeseries.csv").open() as file:
        return [(int(row["operations"]), int(row["errors"])) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("broken", "failure"),
    [(without_slots, "SlotNotCoveredError"), (without_a_primary, "ConnectionError")],
    ids=("no node has the slots", "a primary is dead"),
)
def test_all_drivers_report_the_same_of_a_third_that_cannot_be_reached_and_use_it_again(
    fleet: Fleet, cluster: Group, broken: Callable[[Group], Iterator[Callable[[], None]]], failure: str
) -> None:
    load = ("--url", cluster.url, "--command", "SET", "--key-maximum", "10000", "--rate", f"{RATE}/s")
    load += ("--duration", f"{SECONDS}s", "--retries", "0", "--local-agents", "1", "--processes", "1")
    healthy = cluster.nodes[1]

    def goes_on(calls: int) -> None:
        """So many more on a node that is always there: each driver issues a third of its rate there."""
        before = sets()
        until(lambda: sets() >= before + calls)

    def sets() -> int:
        return int(healthy.client().info("commandstats").get("cmdstat_set", {}).get("calls", 0))

    running = {
        driver: fleet.commands.start("coordinator", "start", *load, "--driver", driver, *workers)
        for driver, workers in WORKERS.items()
    }
    goes_on(RATE // 2)
    with broken(cluster) as mend:
        goes_on(3 * RATE)
        mend()
        ended = {driver: fleet.end(each) for driver, each in running.items()}
    for driver, outcome in ended.items():
        summary = outcome.summary
        operations, unsent = summary["totals"]["operations"], summary["load"]["unsent"]
        assert operations + unsent == RATE * SECONDS, driver
        # What a server still answered before its clients knew.
        assert {*summary["errors"]} - {"CLUSTERDOWN"} == {failure}, driver
        seconds = seconds_of(outcome)
        hit = [number for number, (_, errors) in enumerate(seconds) if errors]
        whole = seconds[hit[0] + 1 : hit[-1]]
        assert len(whole) >= 1, (driver, seconds)
        share = sum(errors for _, errors in whole) / sum(operations for operations, _ in whole)
        assert abs(share - 1 / 3) < 0.15, (driver, seconds)
        # It is used again: nothing fails any more.
        assert hit[-1] < SECONDS - 1, (driver, seconds)
        assert summary["ledger"]["issued"] == summary["ledger"]["counted"] == operations
