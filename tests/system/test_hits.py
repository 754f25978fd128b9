"""Hits and misses of whole runs: the report's are the server's."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from tests.support.runs import Fleet
from tests.support.servers import Server


@pytest.mark.parametrize(
    ("driver", "flags"),
    [
        ("client", ()),
        ("asyncio", ("--pipeline", "4")),
        ("wire", ("--pipeline", "8")),
        ("wire", ("--transaction", "4")),
    ],
    ids=str,
)
def test_the_hit_rate_of_cache_aside_is_that_of_the_server(
    fleet: Fleet, valkey: Server, driver: str, flags: tuple[str, ...]
) -> None:
    valkey.client().config_resetstat()
    mix = ("--profile", "cache_aside", "--key-maximum", "300", "--driver", driver, *flags)
    ended = fleet.run("--url", valkey.url, *mix, "--requests", "4003", "--local-agents", "2")
    assert ended.code == 0, ended.finished.stderr
    stats: Any = valkey.client().info("stats")
    get = ended.summary["commands"]["GET"]
    assert (get["hits"], get["misses"]) == (stats["keyspace_hits"], stats["keyspace_misses"])
    assert get["hits"] + get["misses"] == get["ok"] > 1000
    assert min(get["hits"], get["misses"]) > 0
    assert (ended.summary["totals"]["hits"], ended.summary["commands"]["SET"]["hits"]) == (get["hits"], None)
    [rate] = {line.split()[-2] for line in ended.finished.stdout.splitlines() if line.startswith("GET ")}
    assert rate == f"{get['hits'] / get['ok']:.1%}"
    with (ended.folder / "timeseries.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["hits:GET"]) for row in rows) == sum(int(row["hits"]) for row in rows) == get["hits"]
    assert "hits GET " in ended.finished.stderr
