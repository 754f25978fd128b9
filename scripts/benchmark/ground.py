"""What every section of the benchmark stands on: options, a server, cores; and what it hands back."""

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
from scripts.benchmark.cells import FIRST_KEY, KEY_PREFIX, short_prefix
from scripts.benchmark.referees import ServerReferee

_PAUSE = Seconds(3600)
_FILL_AT_ONCE = 20_000
_FILL = """
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
    redis.call('SET', string.format('%s%d', ARGV[3], number), ARGV[4])
end
"""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, with --quick worked in."""

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
class Judged:
    """A figure that was asked for. verdict: ok, BELOW, or why neither can be said."""

    what: str
    found: str
    wanted: str
    verdict: str

    def line(self) -> str:
        """For people."""
        return f"{self.verdict:<6} {self.what}: {self.found} (wanted: {self.wanted})"


@dataclass(frozen=True, slots=True)
class Findings:
    """What a section found: lines for people, one document for programs, and what of it is judged."""

    lines: Sequence[str]
    document: Any
    judged: Sequence[Judged] = ()


@dataclass(frozen=True, slots=True)
class Ground:
    """cores: (the server's, the generators'), None where nothing is pinned."""

    options: Options
    server: EmbeddedServer
    cores: tuple[int, int] | None

    @property
    def server_cores(self) -> set[int]:
        """Where servers are to be pinned; empty where they are not."""
        return {self.cores[0]} if self.cores else set()

    @property
    def all_cores(self) -> set[int]:
        """All of them, for those who are pinned and should not be; empty where nobody is."""
        return os.sched_getaffinity(0) if self.cores else set()

    @property
    def server_core(self) -> int | None:
        """Where servers are."""
        return self.cores[0] if self.cores else None

    @property
    def core(self) -> int | None:
        """Where generators are."""
        return self.cores[1] if self.cores else None

    @property
    def target(self) -> Target:
        """The server as a plan names it."""
        return patient(self.server.url)

    @property
    def referee(self) -> ServerReferee:
        """The server's own counters."""
        return ServerReferee(self.target, self.server.pids)


Section = Callable[[Ground], Findings]


def patient(url: str) -> Target:
    """A target from which replies may be late: who is stopped between turns must not think that the server was."""
    return Target(url=url, socket_timeout_s=_PAUSE)


def cores_to_pin() -> tuple[int, int] | None:
    """A core for the server and one for the generators, or None where there are not two or they cannot be chosen."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else None


@contextmanager
def pinned_servers(server: EmbeddedServer, cores: set[int]) -> Iterator[None]:
    """Its processes stay on these cores within; none leaves them where they are."""
    before = {pid: os.sched_getaffinity(pid) for pid in server.pids} if cores else {}
    for pid in before:
        _pin_threads(pid, cores)
    try:
        yield
    finally:
        for pid, those in before.items():
            _pin_threads(pid, those)


def _pin_threads(pid: int, cores: set[int]) -> None:
    # Affinity is a thread's own, and the server has started some by now.
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)


def fill(target: Target, keys: int, value_bytes: int, *, short_too: bool = False) -> None:
    """Make all keys exist, and nothing else, so that a GET costs the same in the first round and in the last. The
    server makes them itself. short_too: those that only resp-benchmark draws."""
    ranges = [(KEY_PREFIX, FIRST_KEY, FIRST_KEY + keys - 1)]
    if short_too:
        prefix, digits = short_prefix(keys), len(str(keys - 1))
        ranges.append((prefix, 0, 10 ** (digits - 1) - 1))
    with open_control_client(target) as client:
        client.execute_command("FLUSHALL")
        for prefix, first, last in ranges:
            for start in range(first, last + 1, _FILL_AT_ONCE):
                end = min(last, start + _FILL_AT_ONCE - 1)
                client.execute_command("EVAL", _FILL, 0, start, end, prefix, b"x" * value_bytes)
