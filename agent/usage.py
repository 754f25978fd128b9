"""CPU usage of the agent, its worker processes and the machine. It shows whether the generator was the limit."""

from __future__ import annotations

import os
from collections.abc import Sequence

import psutil

from agent.core.actions import Tick
from common.units import NS_PER_S


class Usage:
    """Samples CPU once a second, and repeats the last sample in between. A sample has the longest delay of the loop
    since the previous one."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}
        self._sampled_ns = 0
        self._last = Tick()
        self._lag_ms = 0.0

    def tick(self, now_ns: int, lag_ms: float, worker_pids: Sequence[int]) -> Tick:
        """The event for the session. Percent as in psutil: of one core for processes, of all cores for the machine."""
        self._lag_ms = max(self._lag_ms, lag_ms)
        if now_ns - self._sampled_ns >= NS_PER_S:
            self._sampled_ns = now_ns
            percents = self._sample((os.getpid(), *worker_pids))
            self._last = Tick(
                cpu_percent=sum(percents),
                cpu_percent_busiest=max(percents, default=0.0),
                host_cpu_percent=psutil.cpu_percent(None),
                lag_ms=self._lag_ms,
            )
            self._lag_ms = 0.0
        return self._last

    def _sample(self, pids: Sequence[int]) -> list[float]:
        self._processes = {pid: self._processes[pid] for pid in pids if pid in self._processes}
        percents = []
        for pid in pids:
            try:
                process = self._processes.setdefault(pid, psutil.Process(pid))
                percents.append(process.cpu_percent(None))
            except psutil.Error:
                continue  # it has just ended; the loop will notice
        return percents
