"""Connections that cannot be opened: the report says how many, why, and that its numbers are those of fewer."""

from __future__ import annotations

import csv

import pytest

from common.plan.schema import Driver
from tests.support.runs import Fleet
from tests.support.servers import Server

_WANTED = {
    Driver.CLIENT: ("--client-instances-per-pool", "40", "--threads-per-pool", "40", "--max-connections", "1"),
    Driver.ASYNCIO: ("--client-instances-per-pool", "40", "--tasks-per-pool", "40", "--max-connections", "1"),
    Driver.WIRE: ("--max-connections", "40"),
}


@pytest.mark.parametrize("driver", Driver)
def test_a_server_that_takes_fewer_clients_than_are_wanted_makes_every_driver_suspect(
    fleet: Fleet, valkey: Server, driver: Driver
) -> None:
    admin = valkey.client()
    # One is ours, and one reads what the server counted.
    admin.config_set("maxclients", 12)
    ended = fleet.run(
        "--url", valkey.url, "--local-agents", "1", "--processes", "1", "--client-pools", "1", "--duration", "2s",
        "--driver", driver.value, *_WANTED[driver],
    )  # fmt: skip
    found = ended.summary["connections"]
    assert 10 <= found["peak_open"] <= 11
    assert found["wanted"] == 40
    assert found["never_opened"] == {"maxclients": 40 - found["peak_open"]}
    assert found["failed_by_cause"] == {"maxclients": found["failed_attempts"]}
    assert ended.summary["verdict"]["level"] == "suspect"
    sentence = f"{40 - found['peak_open']} of 40 wanted connections never opened (maxclients "
    assert any(reason.startswith(sentence) for reason in ended.summary["verdict"]["reasons"])
    with (ended.folder / "timeseries.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert max(int(row["connections_wanted"]) for row in rows) == 40
