"""What a run says of its servers, and what it does when they do not answer."""

from __future__ import annotations

import json
import signal
import threading
from typing import Any

from coordinator.analysis.server_figures import COLUMNS
from tests.support.runs import Fleet, wait_until
from tests.support.servers import Server, start_server

BUSY_SCRIPT = "local sum = 0 for number = 1, 50000000 do sum = sum + number end return sum"
"""Takes half a second, or longer on a busy machine."""


def column(node: Any, name: str) -> list[Any]:
    return [row[COLUMNS.index(name)] for row in node["series"]]


def test_no_call_of_the_coordinator_is_in_the_ledger_of_a_plan_that_makes_the_same_calls(
    fleet: Fleet, valkey: Server
) -> None:
    ended = fleet.run(
        *("--url", valkey.url, "--local-agents", "1", "--processes", "1", "--server-stats", "20ms"),
        *("--duration", "1s", "--rate", "300"),
        *(
            "--command",
            "=INFO",
            "--command",
            "CONFIG GET maxmemory",
            "--command",
            "SLOWLOG GET 1",
            "--command",
            "DBSIZE",
        ),
    )
    summary = ended.summary
    ledger, [node] = summary["ledger"], summary["server"]["nodes"].values()
    assert (ended.code, ledger["unaccounted"], ledger["uncertain"]) == (0, 0, 0)
    assert ledger["issued"] == ledger["server_calls"]
    # On a busy machine, operations that wait when the load ends are never sent.
    assert ledger["issued"] + summary["load"]["unsent"] == 300
    assert len(node["series"]) > 30
    assert node["commands"]["info"]["calls"] == summary["commands"]["INFO"]["ok"]
    assert summary["server"]["unavailable"] == []
    assert set(summary["server"]["times"]) == {"INFO", "CONFIG", "SLOWLOG", "DBSIZE"}
    assert "Server time" in ended.finished.stdout
    reported = fleet.commands.coordinator("report", "latest", "--format", "json")
    assert json.loads(reported.stdout) == summary


def test_a_server_that_forbids_info_and_config_gives_less_and_the_report_names_what_is_missing(
    fleet: Fleet, valkey: Server
) -> None:
    forbidden = ["+@all", "-info", "-config", "-slowlog", "-commandlog", "-latency"]
    valkey.client().acl_setuser("narrow", enabled=True, passwords=["+word"], commands=forbidden, keys=["*"])
    url = valkey.url.replace("redis://", "redis://narrow:word@")
    ended = fleet.run("--url", url, "--local-agents", "1", "--processes", "1", "--duration", "1s", "--rate", "100")
    summary = ended.summary
    assert (ended.code, summary["run"]["outcome"], summary["totals"]["errors"]) == (0, "completed", 0)
    missing = {each["what"]: each["reason"] for each in summary["server"]["unavailable"]}
    assert {"INFO", "INFO commandstats", "CONFIG GET", "LATENCY HISTOGRAM", "samples"} <= set(missing)
    assert all("NOPERM" in reason for reason in missing.values())
    assert "Not known" in ended.finished.stdout
    assert summary["ledger"]["server_calls"] is None


def test_a_long_script_is_seen_in_the_servers_side(fleet: Fleet, valkey: Server) -> None:
    coordinator = fleet.commands.start(
        *("coordinator", "start", "--url", valkey.url, "--local-agents", "1", "--processes", "1"),
        *("--duration", "60s", "--rate", "500", "--server-stats", "100ms"),
    )
    fleet.until_loading()
    valkey.client().eval(BUSY_SCRIPT, 0)
    coordinator.signal(signal.SIGINT)
    ended = fleet.end(coordinator)
    [node] = ended.summary["server"]["nodes"].values()
    assert ended.code == 130
    [entry] = [entry for entry in node["slowlog"] if entry["command"].startswith("EVAL ")]
    assert entry["value"] > 150_000
    # A sample that was due at its begin waited for its end.
    assert max(column(node, "reply_us")) > entry["value"] - 150_000
    assert "Slow commands" in ended.finished.stdout


def test_a_server_that_hangs_is_named_and_the_coordinator_goes_on(fleet: Fleet, valkey: Server) -> None:
    coordinator = fleet.commands.start(
        *("coordinator", "start", "--url", valkey.url, "--local-agents", "1", "--processes", "1", "--retries", "0"),
        *("--duration", "3s", "--rate", "100", "--server-stats", "100ms", "--socket-timeout", "500ms"),
    )
    fleet.until_loading()
    valkey.pause()
    awake = threading.Timer(1.5, valkey.resume)
    awake.start()
    ended = fleet.end(coordinator)
    awake.join()
    summary = ended.summary
    [node] = summary["server"]["nodes"].values()
    [silence, *_] = node["silences"]
    assert "did not answer" in silence["reason"]
    assert silence["until_s"] > silence["since_s"] + 0.4
    assert node["after"] is not None
    assert [agent["state"] for agent in summary["agents"]] == ["finished"]
    assert summary["ledger"]["unaccounted"] == 0


def test_the_series_goes_on_when_a_run_is_resumed(fleet: Fleet, valkey: Server) -> None:
    agent = fleet.agent("a", "--once")
    killed = fleet.coordinator(
        *("--expect-agents", "1", "--url", valkey.url, "--duration", "5s", "--rate", "200", "--server-stats", "50ms"),
        *("--command", "=INFO"),
    )
    fleet.until_loading()
    wait_until(lambda: len(fleet.journal().servers.nodes) == 1, "the first samples")
    killed.signal(signal.SIGKILL)
    killed.wait()
    [before] = [side.rows for side in fleet.journal().servers.nodes.values()]
    ended = fleet.end(fleet.commands.start("coordinator", "start", "--resume", "latest"))
    summary = ended.summary
    [node] = summary["server"]["nodes"].values()
    at_s = column(node, "at_s")
    assert (ended.code, agent.wait().returncode, at_s == sorted(at_s)) == (0, 0, True)
    assert len(at_s) > len(before) + 1
    assert (node["before"] is not None, node["after"] is not None) == (True, True)
    [silence] = node["silences"]
    assert silence["reason"] == "was watched by a coordinator that was killed"
    assert summary["ledger"]["unaccounted"] == 0
    reported = fleet.commands.coordinator("report", "latest", "--format", "json")
    assert json.loads(reported.stdout) == summary


TWO_TARGETS = """
targets: {{eu: {{url: "{eu}"}}, us: {{url: "{us}"}}}}
scenarios:
  - {{name: poll, target: eu, workload: {{commands: [{{command: "=INFO"}}]}}, load: {{duration: 1s, rate: 100}}}}
  - {{name: shop, target: us, workload: {{pipeline: 4}}, load: {{duration: 1s, rate: 200}}}}
"""


def test_the_servers_of_every_target_are_watched(fleet: Fleet, valkey: Server) -> None:
    with start_server() as other:
        plan = fleet.commands.directory / "two.yaml"
        plan.write_text(TWO_TARGETS.format(eu=valkey.url, us=other.url))
        ended = fleet.run(str(plan), "--local-agents", "1", "--processes", "2", "--server-stats", "50ms")
        names = {f"127.0.0.1:{valkey.port}": "eu", f"127.0.0.1:{other.port}": "us"}
    summary = ended.summary
    server = summary["server"]
    assert {name: node["target"] for name, node in server["nodes"].items()} == names
    assert (ended.code, summary["ledger"]["unaccounted"]) == (0, 0)
    assert [scenario["ledger"]["unaccounted"] for scenario in summary["scenarios"]] == [0, 0]
    assert (server["times"]["INFO"]["batch"], server["times"]["SET"]["batch"]) == (1, 4)
