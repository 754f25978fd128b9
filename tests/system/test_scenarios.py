"""Several scenarios in one run, with real servers and processes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from tests.support.groups import SentinelGroup
from tests.support.runs import Fleet, free_port
from tests.support.servers import Server
from tests.support.shapes import Group

THREE = """
targets:
  eu: {{url: "{eu}"}}
  us: {{url: "{us}"}}
load: {{duration: 2s}}
scenarios:
  - name: shop
    target: eu
    workload: {{profile: cache_aside, clean_up: keys}}
    load: {{rate: 500/s}}
  - name: reports
    target: us
    start: 500ms
    pools: [{{driver: wire, client_pools: 1, max_connections: 3}}]
    workload: {{commands: [{{command: GET __key__}}]}}
    load: {{requests: 4001}}
  - name: later
    target: us
    after: shop
    pools: [{{driver: asyncio, client_pools: 1, tasks_per_pool: 2}}]
    load: {{duration: 1s, rate: 300/s}}
"""


def test_three_scenarios_on_two_targets_are_accounted_for_to_the_last_operation(
    fleet: Fleet, valkey: Server, unix_server: Group, tmp_path: Path
) -> None:
    plan = tmp_path / "three.yaml"
    plan.write_text(THREE.format(eu=valkey.url, us=unix_server.url))
    for name in ("a", "b"):
        fleet.agent(name, processes=1)
    ended = fleet.end(fleet.coordinator(str(plan), "--expect-agents", "2"))
    summary = ended.summary
    assert ended.code == 0, ended.finished.stderr
    shop, reports, later = summary["scenarios"]
    assert shop["ledger"]["unaccounted"] == 0
    assert shop["ledger"]["server_calls"] == shop["ledger"]["issued"]
    assert shop["totals"]["operations"] + shop["load"]["unsent"] == 1000
    assert reports["totals"]["operations"] == 4001
    # On a busy machine, operations that wait when the load ends are never sent.
    assert later["totals"]["operations"] + later["load"]["unsent"] == 300
    assert (reports["begin_s"], later["begin_s"]) == (0.5, 2.0)
    ledger = summary["ledger"]
    assert ledger["unaccounted"] == 0
    assert ledger["server_calls"] == shop["ledger"]["issued"] + 4001 + later["totals"]["operations"]
    rows = list(csv.DictReader(io.StringIO((ended.folder / "timeseries.csv").read_text())))
    by_scenario = {
        name: sum(int(row["ok"]) for row in rows if row["scenario"] == name) for name in ("reports", "later")
    }
    assert by_scenario == {"reports": 4001, "later": later["totals"]["ok"]}
    assert valkey.client().dbsize() == 0


TWO_TARGETS = """
targets:
  eu: {{url: "{eu}"}}
  us: {{url: "{us}"}}
load: {{duration: 6s, rate: 200/s}}
scenarios:
  - {{name: here, target: eu}}
  - {{name: there, target: us, {more}}}
"""


def test_a_lost_target_is_named_and_decides_the_exit_code_although_other_scenarios_go_on(
    fleet: Fleet, valkey: Server, unix_server: Group, tmp_path: Path
) -> None:
    plan = tmp_path / "two.yaml"
    plan.write_text(TWO_TARGETS.format(eu=unix_server.url, us=valkey.url, more="start: 0s"))
    coordinator = fleet.coordinator(str(plan), "--local-agents", "1")
    fleet.until_loading()
    valkey.kill()
    ended = fleet.end(coordinator)
    assert ended.code == 4, ended.finished.stderr
    assert "coordinator: the target us was lost in second " in ended.finished.stderr
    here, there = ended.summary["scenarios"]
    assert (here["errors"], here["ledger"]["unaccounted"]) == ({}, 0)
    assert there["errors"]
    assert ended.summary["run"]["outcome"] == "degraded"


def test_errors_before_the_load_name_the_target_or_the_scenario(
    fleet: Fleet, valkey: Server, unix_server: Group, tmp_path: Path
) -> None:
    plan = tmp_path / "two.yaml"
    client = valkey.client()
    client.set("hash", "x")
    client.set("stampede:3", "x")

    def said(more: str, us: str = valkey.url) -> str:
        plan.write_text(TWO_TARGETS.format(eu=unix_server.url, us=us, more=more))
        finished = fleet.coordinator(str(plan), "--local-agents", "1").wait()
        assert finished.returncode != 0
        return finished.stderr.splitlines()[-1]

    assert said("start: 0s", f"redis://127.0.0.1:{free_port()}").startswith("coordinator: targets.us: target 127.0.0.1")
    unknown = said("workload: {commands: [{command: FOO.BAR __key__}]}")
    assert unknown.startswith("coordinator: scenario there: workload: the target does not know")
    setup = said("workload: {setup: [HSET hash a b], commands: [{command: GET}]}")
    assert setup.startswith("coordinator: scenario there: target")
    assert "refused the setup" in setup
    preload = said("workload: {preload: [{command: HSET __key__ a b}], commands: [{command: HGET __key__ a}]}")
    assert "scenario there: target" in preload
    assert "refused the preload" in preload


def test_a_probe_runs_in_a_process_of_its_own_beside_the_load(fleet: Fleet, valkey: Server) -> None:
    fleet.agent("a", processes=1)
    ended = fleet.end(
        fleet.coordinator(
            "--expect-agents", "1", "--url", valkey.url, "--duration", "2s", "--driver", "wire", "--probe", "40/s"
        )
    )  # fmt: skip
    assert ended.code == 0, ended.finished.stderr
    main, probe = ended.summary["scenarios"]
    assert probe["totals"]["operations"] + probe["load"]["unsent"] == 80
    assert probe["connections"]["opened"] == 1
    assert main["totals"]["operations"] > probe["totals"]["operations"]
    assert ended.summary["ledger"]["unaccounted"] == 0


def test_visibility_finds_every_write_of_one_target_on_another(fleet: Fleet, valkey: Server, tmp_path: Path) -> None:
    file = tmp_path / "visibility.yaml"
    file.write_text(
        f"targets: {{eu: {{url: '{valkey.url}'}}, us: {{url: '{valkey.url}'}}}}\n"
        "visibility: {write: eu, read: us, rate: 50/s}\nload: {duration: 2s, warmup: 1s}\n"
    )
    fleet.agent("a", "--once")
    ended = fleet.end(fleet.coordinator(str(file), "--expect-agents", "1"))
    visibility = ended.summary["visibility"]
    assert (visibility["write"], visibility["read"]) == ("eu", "us")
    assert (visibility["written"], visibility["unseen"]) == (140, 0)
    assert 0 < visibility["lag_us"]["count"] <= 90
    assert sum(bin_["count"] for bin_ in visibility["lag_bins"]) == visibility["lag_us"]["count"]
    assert ended.summary["ledger"]["unaccounted"] == 0
    assert "140 of 140 writes on eu seen on us, 0 unseen" in " ".join(ended.finished.stdout.split())


VISIBILITY = """
targets:
  eu: {{url: "{eu}"}}
  us: {{url: "{us}"}}
load: {{duration: 2s}}
visibility: {{write: eu, read: us, rate: 20/s, timeout: {timeout}}}
scenarios:
  - name: readers
    target: us
    workload: {{commands: [{{command: GET __key__}}]}}
    load: {{rate: 100/s}}
"""


def test_a_replica_shows_every_write_and_reads_beside_it_stay_accounted_for(
    fleet: Fleet, shared_sentinel: SentinelGroup, tmp_path: Path
) -> None:
    eu, us = (f"redis://127.0.0.1:{port}" for port in (shared_sentinel.primary, shared_sentinel.replica))
    file = tmp_path / "replica.yaml"
    file.write_text(VISIBILITY.format(eu=eu, us=us, timeout="5s"))
    fleet.agent("a", "--once")
    ended = fleet.end(fleet.coordinator(str(file), "--expect-agents", "1"))
    visibility, ledger = ended.summary["visibility"], ended.summary["ledger"]
    assert visibility["written"] > 0
    assert (visibility["seen"], visibility["unseen"]) == (visibility["written"], 0)
    assert ledger["unaccounted"] == 0
    assert ledger["server_calls"] == ledger["issued"]


def test_writes_that_are_not_replicated_are_unseen(
    fleet: Fleet, valkey: Server, unix_server: Group, tmp_path: Path
) -> None:
    file = tmp_path / "apart.yaml"
    file.write_text(VISIBILITY.format(eu=valkey.url, us=unix_server.url, timeout="500ms"))
    fleet.agent("a", "--once")
    ended = fleet.end(fleet.coordinator(str(file), "--expect-agents", "1"))
    visibility = ended.summary["visibility"]
    assert 0 < visibility["written"] == visibility["unseen"]
    assert (visibility["seen"], visibility["lag_us"]["count"]) == (0, 0)
    assert ended.summary["ledger"]["unaccounted"] == 0
