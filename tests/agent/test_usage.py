from __future__ import annotations

import os
import subprocess
import sys
import threading

import psutil
import pytest

from agent.core.actions import Tick
from agent.usage import Usage
from common.units import NS_PER_S


def test_figures_change_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    percents = iter([10.0, 20.0, 30.0])
    monkeypatch.setattr(psutil.Process, "cpu_percent", lambda *_: next(percents))
    usage = Usage()
    found = [usage.tick(now_ns, 0.0, []).cpu_percent for now_ns in (NS_PER_S, 2 * NS_PER_S - 1, 2 * NS_PER_S)]
    assert found == [10.0, 10.0, 20.0]


def test_cpu_of_agent_and_workers_adds_up_and_the_busiest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    percents = iter([5.0, 70.0, 20.0])
    monkeypatch.setattr(psutil.Process, "cpu_percent", lambda *_: next(percents))
    # Any running processes.
    tick = Usage().tick(NS_PER_S, 0.0, [os.getppid(), 1])
    assert (tick.cpu_percent, tick.cpu_percent_busiest) == (95.0, 70.0)


def test_the_lag_is_the_worst_since_the_previous_sample() -> None:
    usage = Usage()
    assert usage.tick(NS_PER_S, 3.0, []).lag_ms == 3.0
    assert usage.tick(NS_PER_S + 1, 9.0, []).lag_ms == 3.0
    assert usage.tick(NS_PER_S + 2, 1.0, []).lag_ms == 3.0
    assert usage.tick(2 * NS_PER_S, 2.0, []).lag_ms == 9.0
    assert usage.tick(3 * NS_PER_S, 0.5, []).lag_ms == 0.5


def test_a_worker_process_that_has_ended_is_left_out() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    tick = Usage().tick(NS_PER_S, 0.0, [gone.pid])
    assert isinstance(tick, Tick)
    assert tick.cpu_percent == tick.cpu_percent_busiest


def test_cpu_time_shows_in_the_figures() -> None:
    usage = Usage()
    usage.tick(NS_PER_S, 0.0, [])
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            sum(range(1000))

    worker = threading.Thread(target=work)
    before_s = psutil.Process().cpu_times().user
    worker.start()
    while psutil.Process().cpu_times().user < before_s + 0.1:
        stop.wait(0.01)
    stop.set()
    worker.join(10)
    tick = usage.tick(2 * NS_PER_S, 0.0, [])
    assert tick.cpu_percent > 10
    assert tick.cpu_percent_busiest == tick.cpu_percent
