from __future__ import annotations

import msgspec
import pytest

from common.plan.schema import Driver, Pools
from coordinator.analysis.missing_connections import missing_connections
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.analysis.verdict import Level
from coordinator.journal.records import RunOpened
from tests.coordinator.analysis.test_verdict import verdict
from tests.support.records import accepted, clean_run, interval, opened, plan


def a_run(
    driver: Driver, never_opened: dict[str, int], *, max_clients: int | None = 30, ceiling: int = 100
) -> Aggregate:
    """A run of two agents with 30 open connections. never_opened: the other connections, by cause."""
    the_plan = msgspec.structs.replace(plan(), pools=(Pools(driver=driver),))
    begun: RunOpened = opened(the_plan)
    target = msgspec.structs.replace(begun.target, max_clients=max_clients)
    begun = msgspec.structs.replace(begun, target=target, connection_ceiling=ceiling)
    wanted = 30 + sum(never_opened.values())
    missing = interval(0, {}, open_peak=30, wanted=wanted, never_opened=never_opened)
    return fold([begun, accepted("a1", 0, missing), accepted("a2", 0, interval(0, {}, open_peak=0))])


@pytest.mark.parametrize("driver", Driver)
def test_maxclients_of_the_server_is_named_with_its_remedy(driver: Driver) -> None:
    assert list(missing_connections(a_run(driver, {"maxclients": 70}))) == [
        "70 of 100 wanted connections never opened (maxclients 70): at most 30 carried the load. Raise maxclients on "
        "the server (now 30)."
    ]


@pytest.mark.parametrize("driver", Driver)
@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        ("ulimit -n", "Raise `ulimit -n` on the host of agent a1."),
        ("fs.file-max", "Raise the sysctl fs.file-max on the host of agent a1."),
        ("local ports", "Widen the sysctl net.ipv4.ip_local_port_range on the host of agent a1, or use more"),
    ],
)
def test_a_limit_of_a_load_machine_is_named_with_its_agent(driver: Driver, cause: str, remedy: str) -> None:
    (reason,) = missing_connections(a_run(driver, {cause: 5}))
    assert f"5 of 35 wanted connections never opened ({cause} 5)" in reason
    assert remedy in reason


def test_several_causes_have_a_remedy_each() -> None:
    (reason,) = missing_connections(a_run(Driver.WIRE, {"ulimit -n": 9, "maxclients": 20, "pending": 1}))
    assert "30 of 60 wanted connections never opened (maxclients 20, ulimit -n 9, pending 1)" in reason
    assert reason.endswith("Raise maxclients on the server (now 30); raise `ulimit -n` on the host of agent a1.")


def test_the_wire_driver_needs_all_of_its_connections() -> None:
    (reason,) = missing_connections(a_run(Driver.WIRE, {"refused": 70}))
    assert "look for the cause (refused) in the server's log" in reason.lower()


@pytest.mark.parametrize("driver", [Driver.CLIENT, Driver.ASYNCIO])
def test_missing_connections_of_a_dead_server_are_a_result(driver: Driver) -> None:
    assert list(missing_connections(a_run(driver, {"refused": 40, "timeout": 2}))) == []


@pytest.mark.parametrize("driver", Driver)
def test_a_server_that_silently_closes_connections_above_its_limit_is_named(driver: Driver) -> None:
    (reason,) = missing_connections(a_run(driver, {"closed by server": 70}))
    assert reason.endswith("Raise maxclients on the server (now 30).")


@pytest.mark.parametrize("driver", [Driver.CLIENT, Driver.ASYNCIO])
def test_a_server_below_its_limit_that_closes_connections_is_a_result(driver: Driver) -> None:
    assert list(missing_connections(a_run(driver, {"closed by server": 70}, max_clients=1000))) == []


def test_attempts_that_were_pending_at_the_end_are_no_finding() -> None:
    assert list(missing_connections(a_run(Driver.WIRE, {"pending": 70}))) == []


def test_missing_connections_make_a_run_suspect() -> None:
    records = [*clean_run()]
    missing = accepted("a1", 3, interval(2, {}, open_peak=2, wanted=9, never_opened={"maxclients": 7}))
    found = verdict([*records[:-4], missing, *records[-4:]])
    assert found.level is Level.SUSPECT
    assert found.reasons[0].startswith("7 of ")
