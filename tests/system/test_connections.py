"""Connections that cannot be opened: the report says how many, and why."""

from __future__ import annotations

import csv
import shlex
import sys
from pathlib import Path

import pytest

from common.plan.schema import Driver
from tests.support.runs import Fleet, connections
from tests.support.servers import Server

_WANTED = {
    Driver.CLIENT: ("--client-instances-per-pool", "40", "--threads-per-pool", "40", "--max-connections", "1"),
    Driver.ASYNCIO: ("--client-instances-per-pool", "40", "--tasks-per-pool", "40", "--max-connections", "1"),
    Driver.WIRE: ("--max-connections", "40"),
}


@pytest.mark.parametrize("driver", Driver)
def test_connections_beyond_maxclients_make_the_run_of_every_driver_suspect(
    fleet: Fleet, valkey: Server, driver: Driver
) -> None:
    admin = valkey.client()
    # One connection is the test's, one reads the server's counters.
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


def test_the_wire_driver_is_refused_before_the_load_if_the_process_may_open_too_few_files(
    fleet: Fleet, valkey: Server
) -> None:
    program = Path(sys.executable).parent / "coordinator"
    finished = fleet.commands.start_shell(
        f"ulimit -n 100; exec {shlex.quote(str(program))} start --url {valkey.url} --local-agents 1 --processes 1 "
        "--duration 1s --driver wire --max-connections 300"
    ).wait(30)
    assert finished.returncode == 5
    last = finished.stderr.splitlines()[-1]
    assert "a worker process may open 100 files (`ulimit -n`), but needs" in last
    assert "raise `ulimit -n`" in last
    assert not connections(valkey.client())
    assert not fleet.runs


def test_a_low_soft_limit_of_open_files_is_raised(fleet: Fleet, valkey: Server) -> None:
    program = Path(sys.executable).parent / "coordinator"
    ended = fleet.end(
        fleet.commands.start_shell(
            f"ulimit -Sn 100; exec {shlex.quote(str(program))} start --url {valkey.url} --local-agents 1 --processes 1 "
            "--duration 1s --driver wire --max-connections 150"
        )
    )
    assert ended.summary["connections"]["peak_open"] == 150
