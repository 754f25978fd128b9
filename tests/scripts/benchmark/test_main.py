"""The benchmark itself, as short as it can be: what it measures here is worth nothing, but it must measure."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from common.clock import monotonic_ns
from common.plan.schema import Embedded
from common.units import NS_PER_S
from coordinator.embedded import open_embedded
from scripts.benchmark import contenders, turns
from scripts.benchmark.__main__ import COMPARED, COMPARED_TASKS, fill, parse, plan_of, with_threads

ROOT = Path(__file__).parents[3]


@pytest.mark.usefixtures("no_leaks")
def test_it_says_what_it_ran_against_and_writes_its_ratios(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    options = [
        "--rounds",
        "1",
        "--threads",
        "2",
        "--tasks",
        "3",
        "--scale-threads",
        "1",
        "--keys",
        "10",
        "--json",
        str(file),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", *options], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("against valkey ")
    document = json.loads(file.read_text())
    assert document["versions"]["redis"]
    [compared] = document["client_driver_against_bare_loop"]
    assert set(compared["ratios"]) == set(COMPARED) - {"client driver"}
    assert all(turn["operations"] > 0 for one in compared["contenders"].values() for turn in one["rounds"])
    [of_tasks] = document["asyncio_driver_against_bare_loop"]
    assert (of_tasks["tasks"], set(of_tasks["ratios"])) == (3, set(COMPARED_TASKS) - {"asyncio driver"})
    assert all(turn["operations"] > 0 for one in of_tasks["contenders"].values() for turn in one["rounds"])
    [scaled] = document["two_processes_against_one"]
    assert scaled["ratio"]["median"] > 0


@pytest.mark.usefixtures("no_leaks")
def test_a_contender_that_counts_other_operations_than_the_server_did_fails_the_benchmark() -> None:
    with open_embedded(Embedded.STANDALONE) as server:
        plan = with_threads(plan_of(server.url, parse(["--keys", "10"])), 1)
        fill(plan)
        lane = contenders.Lane(plan, server.port, core=None)
        with contenders.bare(lane, "execute") as bare:
            honest = bare.end
            bare.end = lambda: honest() + 1  # type: ignore[method-assign]
            with pytest.raises(contenders.BenchError, match="but the server"):
                turns.play(turns.Referee(plan.target, server.pid or 0), {"bare": bare}, rounds=1)


@pytest.mark.usefixtures("no_leaks")
def test_a_bare_loop_that_dies_is_noticed() -> None:
    with open_embedded(Embedded.STANDALONE) as server:
        plan = with_threads(plan_of(server.url, parse([])), 1)
        lane = contenders.Lane(plan, server.port, core=None)
        with contenders.bare(lane, "methods") as bare:
            bare.begin()
            os.kill(bare.pids()[0], signal.SIGKILL)
            with pytest.raises(contenders.BenchError, match="ended before its time"):
                bare.end()


@pytest.mark.usefixtures("no_leaks")
def test_a_benchmark_that_is_killed_leaves_no_stopped_process_behind(tmp_path: Path) -> None:
    options = ["--threads", "1", "--keys", "10", "--json", str(tmp_path / "bench.json")]
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


@pytest.mark.parametrize("text", ["0", "-1", "1,,2", "four", "1.5", ""])
def test_a_number_of_threads_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([f"--threads={text}"])
    assert "expected a whole number >= 1" in capsys.readouterr().err
