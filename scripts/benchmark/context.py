"""The context of a section: options, server and cores; and the result that a section returns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from common.plan.schema import Target
from common.redis_client import open_control_client
from common.units import Seconds
from coordinator.embedded import EmbeddedServer
from scripts.benchmark.cases import FIRST_KEY, KEY_PREFIX, short_prefix
from scripts.benchmark.server_counters import RedisCounters

_LONG_TIMEOUT = Seconds(3600)
_KEYS_PER_SCRIPT = 20_000
_CREATE_KEYS = """
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
    redis.call('SET', string.format('%s%d', ARGV[3], number), ARGV[4])
end
"""


@dataclass(frozen=True, slots=True)
class Options:
    """The parsed command line."""

    sections: tuple[str, ...]
    connections: tuple[int, ...]
    pipelines: tuple[int, ...]
    data_sizes: tuple[int, ...]
    keys: int
    contenders: tuple[str, ...]
    threads: tuple[int, ...]
    tasks: tuple[int, ...]
    scale_threads: tuple[int, ...]
    rounds: int
    turn_s: float
    rate_seconds: int
    memory_seconds: int
    agents: tuple[int, ...]
    fleet_seconds: int
    real: int | None
    quick: bool
    no_pin: bool
    json: Path


@dataclass(frozen=True, slots=True)
class GoalResult:
    """A goal and what was measured. verdict: "ok", "MISSED", or why the goal cannot be judged."""

    what: str
    found: str
    wanted: str
    verdict: str

    def line(self) -> str:
        """The result as a printed line."""
        return f"{self.verdict:<6} {self.what}: {self.found} (goal: {self.wanted})"


@dataclass(frozen=True, slots=True)
class Findings:
    """The result of a section. lines: printed. document: for the JSON file."""

    lines: Sequence[str]
    document: Any
    goal_results: Sequence[GoalResult] = ()


@dataclass(frozen=True, slots=True)
class BenchContext:
    """What all sections share. cores: (server's core, generators' core); None if nothing is pinned."""

    options: Options
    server: EmbeddedServer
    cores: tuple[int, int] | None

    @property
    def server_cores(self) -> set[int]:
        """Cores to pin servers to; empty to pin nothing."""
        return {self.cores[0]} if self.cores else set()

    @property
    def all_cores(self) -> set[int]:
        """All usable cores, to unpin a pinned server; empty if nothing is pinned."""
        return os.sched_getaffinity(0) if self.cores else set()

    @property
    def server_core(self) -> int | None:
        """The core of servers; None if nothing is pinned."""
        return self.cores[0] if self.cores else None

    @property
    def generator_core(self) -> int | None:
        """The core of generators; None if nothing is pinned."""
        return self.cores[1] if self.cores else None

    @property
    def target(self) -> Target:
        """The server, as the target of a plan."""
        return target_at(self.server.url)

    @property
    def counters(self) -> RedisCounters:
        """The counters of the server."""
        return RedisCounters(self.target, self.server.pids)


Section = Callable[[BenchContext], Findings]


def target_at(url: str) -> Target:
    """The target at this URL. Long timeouts: a paused contender must not time out on a healthy server."""
    return Target(url=url, socket_timeout_s=_LONG_TIMEOUT)


def cores_to_pin() -> tuple[int, int] | None:
    """(server's core, generators' core); None with fewer than two cores, or on a system that cannot pin processes."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else None


@contextmanager
def pinned_servers(server: EmbeddedServer, cores: set[int]) -> Iterator[None]:
    """Pin the server's processes to these cores within the block; an empty set pins nothing."""
    before = {pid: os.sched_getaffinity(pid) for pid in server.pids} if cores else {}
    for pid in before:
        _pin_threads(pid, cores)
    try:
        yield
    finally:
        for pid, cores_before in before.items():
            _pin_threads(pid, cores_before)


def _pin_threads(pid: int, cores: set[int]) -> None:
    # Each thread has its own affinity, and the server has already started threads.
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)


def create_keys(target: Target, keys: int, value_bytes: int, *, short_too: bool = False) -> None:
    """Empty the server and create all keys, so that a GET costs the same in the first round and in the last. A Lua
    script creates them. short_too: also create the shorter keys of resp-benchmark."""
    ranges = [(KEY_PREFIX, FIRST_KEY, FIRST_KEY + keys - 1)]
    if short_too:
        prefix, digits = short_prefix(keys), len(str(keys - 1))
        ranges.append((prefix, 0, 10 ** (digits - 1) - 1))
    with open_control_client(target) as client:
        client.execute_command("FLUSHALL")
        for prefix, first, last in ranges:
            for start in range(first, last + 1, _KEYS_PER_SCRIPT):
                end = min(last, start + _KEYS_PER_SCRIPT - 1)
                client.execute_command("EVAL", _CREATE_KEYS, 0, start, end, prefix, b"x" * value_bytes)
