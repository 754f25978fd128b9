"""Very short benchmark runs: their numbers mean nothing, but each section must measure something."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.clock import monotonic_ns
from common.plan.schema import Embedded
from common.units import NS_PER_S
from coordinator.embedded import open_embedded
from scripts.benchmark import contenders, rates, turns
from scripts.benchmark.__main__ import main
from scripts.benchmark.context import target_at
from scripts.benchmark.drivers import TASK_CONTENDERS, THREAD_CONTENDERS, plan_of, with_threads
from scripts.benchmark.server_counters import RedisCounters

ROOT = Path(__file__).parents[3]


_SHORT = "--rounds 1 --turn 200ms --threads 2 --tasks 3 --scale-threads 1 --keys 10 --rate-seconds 2"
SHORT = _SHORT.split()


def run(tmp_path: Path, *arguments: str) -> tuple[str, Any]:
    """Run the benchmark. Returns (its output, the content of its JSON file)."""
    file = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", *arguments, *SHORT, "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


@pytest.mark.usefixtures("no_leaks")
def test_the_benchmark_names_the_server_and_writes_the_ratios(tmp_path: Path) -> None:
    printed, document = run(tmp_path, "drivers")
    assert printed.startswith("against valkey ")
    assert document["versions"]["redis"]
    found = document["sections"]["drivers"]
    [threads] = found["client_driver_against_bare_loop"]
    assert set(threads["ratios"]) == set(THREAD_CONTENDERS) - {"client driver"}
    assert all(turn["operations"] > 0 for one in threads["contenders"].values() for turn in one["rounds"])
    [tasks] = found["asyncio_driver_against_bare_loop"]
    assert (tasks["tasks"], set(tasks["ratios"])) == (3, set(TASK_CONTENDERS) - {"asyncio driver"})
    assert all(turn["operations"] > 0 for one in tasks["contenders"].values() for turn in one["rounds"])
    assert len(document["judged"]) == 4


@pytest.mark.usefixtures("no_leaks")
def test_cases_are_measured_against_the_server_and_against_a_null_server(tmp_path: Path) -> None:
    cases = ["--connections", "3", "--pipelines", "1,2", "--data-sizes", "5", "--contenders", "wire,client,bare"]
    _, document = run(tmp_path, "rivals", "ceiling", *cases)
    by_depth = document["sections"]["rivals"]["cells"]
    assert [(case["pipeline"], set(case["contenders"])) for case in by_depth] == [
        (1, {"wire", "client", "bare"}),
        (2, {"wire", "client", "bare"}),
    ]
    assert [set(case["contenders"]) for case in document["sections"]["ceiling"]] == [{"wire", "client"}] * 2
    turns = [one for case in by_depth for each in case["contenders"].values() for one in each["rounds"]]
    assert all(turn["operations"] > 0 for turn in turns)


@pytest.mark.usefixtures("no_leaks")
def test_two_processes_and_a_cluster_are_measured(tmp_path: Path) -> None:
    printed, document = run(tmp_path, "scaling", "cluster", "--pipelines", "2")
    scaled = document["sections"]["scaling"]
    assert [pair["ratio"]["median"] > 0 for pair in scaled["pairs"]] in ([True], [])
    [of_client] = scaled["two_processes_against_one"]
    assert of_client["ratio"]["median"] > 0
    [in_cluster] = document["sections"]["cluster"]
    assert in_cluster["cpu_per_operation_ratio"] > 0
    assert "\ngoals\n" in printed


def test_rates_are_measured_at_shares_of_the_capacity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SHARES", (0.1, 0.5))
    file = tmp_path / "bench.json"
    assert main(["rates", *SHORT, "--contenders", "client", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    few, many = document["sections"]["rates"]
    assert [few["share"], many["share"]] == [0.1, 0.5]
    assert 0 < few["rate_per_s"] < many["rate_per_s"]
    assert [goal["what"] for goal in document["judged"]] == ["client driver in open loop at 50% of its capacity"]


@pytest.mark.usefixtures("no_leaks")
def test_the_benchmark_fails_if_the_counts_of_contender_and_server_differ() -> None:
    with open_embedded(Embedded.STANDALONE) as server:
        plan = with_threads(plan_of(target_at(server.url)), 1)
        spec = contenders.LoadSpec(plan, server.port, core=None)
        with contenders.baseline(spec, "execute") as baseline:
            stop_load = baseline.stop_load
            baseline.stop_load = lambda: (stop_load() or 0) + 1  # type: ignore[method-assign]
            counters = RedisCounters(plan.target, server.pids)
            with pytest.raises(contenders.BenchError, match="but the server"):
                turns.run_rounds(
                    {"bare": turns.ContenderSetup(lambda: nullcontext(baseline), counters)}, rounds=1, turn_s=0.2
                )


@pytest.mark.usefixtures("no_leaks")
def test_a_killed_baseline_fails_the_benchmark() -> None:
    with open_embedded(Embedded.STANDALONE) as server:
        plan = with_threads(plan_of(target_at(server.url)), 1)
        spec = contenders.LoadSpec(plan, server.port, core=None)
        with contenders.baseline(spec, "methods") as baseline:
            baseline.start_load()
            os.kill(baseline.pids()[0], signal.SIGKILL)
            with pytest.raises(contenders.BenchError, match="ended early"):
                baseline.stop_load()


@pytest.mark.usefixtures("no_leaks")
def test_a_killed_benchmark_leaves_no_paused_process_behind(tmp_path: Path) -> None:
    options = ["drivers", "--threads", "1", "--json", str(tmp_path / "bench.json")]
    with subprocess.Popen([sys.executable, "-m", "scripts.benchmark", *options], cwd=ROOT) as bench:
        stopped: list[psutil.Process] = []
        give_up_ns = monotonic_ns() + 30 * NS_PER_S
        while not stopped and monotonic_ns() < give_up_ns:
            family = psutil.Process(bench.pid).children(recursive=True)
            stopped = [process for process in family if process.status() == psutil.STATUS_STOPPED]
            with contextlib.suppress(subprocess.TimeoutExpired):
                bench.wait(0.1)
        bench.kill()
    assert stopped
    assert psutil.wait_procs(family, timeout=10)[1] == []
