"""Maintenance notifications through the whole program."""

from __future__ import annotations

import pytest

from common.plan.schema import Driver
from tests.support.notifying import NotifyingServer, push
from tests.support.runs import Fleet

AN_HOUR_S = 3600


@pytest.mark.parametrize("driver", Driver)
def test_notifications_are_reported_and_a_long_move_does_not_delay_the_end(fleet: Fleet, driver: Driver) -> None:
    with NotifyingServer() as server:
        server.send_at(20, push("MIGRATING", 1, 10) + push("MIGRATED", 2))
        server.send_at(40, push("MOVING", 3, AN_HOUR_S, server.address))
        ended = fleet.run(
            "--url", server.url, "--local-agents", "1", "--processes", "1", "--client-pools", "1", "--driver",
            driver.value, "--ratio", "1:1", "--requests", "2000", "--max-connections", "1", "--maintenance", "on",
            "--relaxed-timeout", "3s", "--endpoint-type", "external-ip",
        )  # fmt: skip
        assert set(server.endpoint_types) == {"external-ip"}
    assert ended.code == 0
    [scenario] = ended.summary["scenarios"]
    for found in (ended.summary["connections"], scenario["connections"]):
        assert found["maintenance"] == {"MIGRATING": 1, "MIGRATED": 1, "MOVING": 1}
        assert (found["opened"], found["drops"]) == (2, {})
        assert [found["connect_ms"][part]["count"] for part in ("total", "tcp", "tls", "handshake")] == [2, 2, 0, 2]
    assert "maintenance notifications: " in ended.finished.stdout
    assert "connects took " in ended.finished.stdout
