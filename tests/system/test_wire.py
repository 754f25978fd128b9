"""Whole runs with the wire driver: every operation is accounted for."""

from __future__ import annotations

import signal

import pytest

from tests.support.runs import Fleet, Outcome, calls, connections
from tests.support.servers import Server

LOCAL = ("--local-agents", "1", "--processes", "2", "--driver", "wire", "--key-maximum", "500")
LONG = ("--duration", "60s")


def assert_accounted(ended: Outcome, operations: int | None = None) -> None:
    ledger = ended.summary["ledger"]
    assert (ledger["note"], ledger["unaccounted"]) == (None, 0)
    assert ledger["issued"] == ledger["counted"] == ledger["server_calls"] > 0
    assert operations in (None, ledger["issued"])
    assert ended.summary["totals"]["errors"] == 0


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("standalone", ("--warmup", "500ms")),
        ("cluster", ("--pipeline", "10")),
        ("cluster", ("--transaction", "5")),
        ("sentinel", ("--pipeline", "10", "--rate", "1000/s")),
    ],
    ids=str,
)
def test_every_way_of_sending_by_wire_is_accounted_for(fleet: Fleet, kind: str, flags: tuple[str, ...]) -> None:
    length = ("--duration", "1s") if "--warmup" in flags else ("--requests", "2003")
    ended = fleet.run("--embedded-server", kind, "--profile", "basic_rw", *length, *flags, *LOCAL)
    assert ended.code == 0, ended.finished.stderr
    assert_accounted(ended, None if "--warmup" in flags else 2003)


def test_an_interrupted_run_with_the_wire_driver_is_exact(fleet: Fleet, valkey: Server) -> None:
    coordinator = fleet.coordinator("--url", valkey.url, "--pipeline", "5", *LOCAL, *LONG)
    fleet.until_loading()
    coordinator.signal(signal.SIGINT)
    ended = fleet.end(coordinator, timeout=40)
    assert (ended.code, ended.summary["run"]["outcome"]) == (130, "interrupted")
    assert_accounted(ended)
    assert not connections(valkey.client())


def test_a_killed_connection_fails_only_the_operations_under_way_on_it(fleet: Fleet, valkey: Server) -> None:
    admin = valkey.client()
    coordinator = fleet.coordinator("--url", valkey.url, "--duration", "4s", "--pipeline", "3", *LOCAL)
    fleet.until_loading()
    for _ in range(3):
        victim = next(row["id"] for row in admin.client_list() if row["name"] == "stampede")
        admin.client_kill_filter(_id=victim)
    ended = fleet.end(coordinator)
    counted = calls(admin)
    ledger, totals = ended.summary["ledger"], ended.summary["totals"]
    assert ledger["issued"] == ledger["counted"]
    assert totals["errors"] <= 3 * 3
    assert ended.summary["connections"]["reconnects"] == 3
    done = sum(counted.get(name, 0) for name in ("set", "get", "del"))
    assert totals["operations"] - totals["errors"] <= done <= totals["operations"]
