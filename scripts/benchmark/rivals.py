"""The programs of others, with whom we are compared: how each is called for a cell, and what it says it did.

memtier_benchmark sends SET and GET in turn on each connection, from one thread. redis-benchmark and resp-benchmark send
one command only, so each has two halves, one of SETs and one of GETs, which are made one afterwards: as many of the one
as of the other. All send one value again and again, which is their best; our drivers draw one for each SET.

Only Locust says in the end what it did. memtier_benchmark does so, too, when it is interrupted; but one of its threads
then sums up what another still counts, and a second may be in it twice.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.clock import monotonic_ns
from common.units import NS_PER_S
from scripts.benchmark.cells import FIRST_KEY, KEY_PREFIX, Cell, short_prefix
from scripts.benchmark.contenders import BenchError, Contender, pinned
from scripts.benchmark.environment import ROOT, programs
from scripts.benchmark.referees import Referee

_PATIENCE_NS = 30 * NS_PER_S
_LOOK_S = 0.02
_FOR_EVER_S = 100_000
_NEVER_DONE = 10**9


@dataclass(frozen=True, slots=True)
class RivalJob:
    """What a rival is to do. protocol: the RESP version of clients that are redis-py's. file: for what it counted."""

    cell: Cell
    port: int
    protocol: int
    file: Path


@dataclass(frozen=True, slots=True)
class Rival:
    """A program. source: where it is looked for. count: reads from the job's file what it counted; None: it does not
    say so when it is told to end by this signal."""

    source: Callable[[], tuple[str, str]]
    arguments: Callable[[RivalJob], list[str]]
    ending: signal.Signals = signal.SIGKILL
    count: Callable[[str], int] | None = None
    environment: Callable[[RivalJob], Mapping[str, str]] = lambda _: {}


def _on_path(name: str) -> Callable[[], tuple[str, str]]:
    found = shutil.which(name)
    return lambda: (found or "", "" if found else "not on PATH")


def _packaged(name: str) -> Callable[[], tuple[str, str]]:
    def look() -> tuple[str, str]:
        binaries, problem = programs()
        return str(binaries / name), problem

    return look


def memtier_arguments(job: RivalJob) -> list[str]:
    """One thread; without a seed for each client, all connections would draw the same keys one after the other."""
    cell = job.cell
    return [
        *("--host", "127.0.0.1", "--port", str(job.port), "--threads", "1", "--clients", str(cell.connections)),
        *("--pipeline", str(cell.pipeline), "--data-size", str(cell.value_bytes), "--ratio", "1:1"),
        *("--key-pattern", "R:R", "--key-prefix", KEY_PREFIX, "--distinct-client-seed"),
        *("--key-minimum", str(FIRST_KEY), "--key-maximum", str(cell.last_key)),
        *("--test-time", str(_FOR_EVER_S), "--hide-histogram"),
    ]


def _redis_benchmark(*command: str) -> Callable[[RivalJob], list[str]]:
    def arguments(job: RivalJob) -> list[str]:
        cell = job.cell
        return [
            *("-h", "127.0.0.1", "-p", str(job.port), "-c", str(cell.connections), "-P", str(cell.pipeline)),
            *("-n", str(_NEVER_DONE), "-r", str(cell.keys), *_filled(command, f"{KEY_PREFIX}1__rand_int__", cell)),
        ]

    return arguments


def _resp_benchmark(*command: str) -> Callable[[RivalJob], list[str]]:
    def arguments(job: RivalJob) -> list[str]:
        cell = job.cell
        key = f"{short_prefix(cell.keys)}{{rand {cell.keys}}}"
        return [
            *("-h", "127.0.0.1", "-p", str(job.port), "-c", str(cell.connections), "-P", str(cell.pipeline)),
            # The first of the cores that it may use: of those it was pinned to.
            *("--cores", "0", "-s", str(_FOR_EVER_S), " ".join(_filled(command, key, cell))),
        ]

    return arguments


def _filled(command: tuple[str, ...], key: str, cell: Cell) -> list[str]:
    return [{"KEY": key, "VALUE": "x" * cell.value_bytes}.get(word, word) for word in command]


def locust_arguments(job: RivalJob) -> list[str]:
    """A user for each connection, all at once."""
    users = str(job.cell.connections)
    return [
        *("--locustfile", str(ROOT / "scripts/benchmark/users.py"), "--headless", "--users", users),
        *("--spawn-rate", users, "--loglevel", "ERROR", "--only-summary"),
    ]


def _locust_environment(job: RivalJob) -> Mapping[str, str]:
    told = {
        "port": job.port,
        "protocol": job.protocol,
        "key_prefix": KEY_PREFIX,
        "first_key": FIRST_KEY,
        "keys": job.cell.keys,
        "value_bytes": job.cell.value_bytes,
        "file": str(job.file),
    }
    return {"STAMPEDE_BENCH": json.dumps(told)}


RIVALS: dict[str, Rival] = {
    "memtier_benchmark": Rival(_on_path("memtier_benchmark"), memtier_arguments),
    "redis-benchmark SET": Rival(_on_path("redis-benchmark"), _redis_benchmark("SET", "KEY", "VALUE")),
    "redis-benchmark GET": Rival(_on_path("redis-benchmark"), _redis_benchmark("GET", "KEY")),
    "resp-benchmark SET": Rival(_packaged("resp-benchmark"), _resp_benchmark("SET", "KEY", "VALUE")),
    "resp-benchmark GET": Rival(_packaged("resp-benchmark"), _resp_benchmark("GET", "KEY")),
    "Locust": Rival(_packaged("locust"), locust_arguments, signal.SIGTERM, int, _locust_environment),
}


def release(name: str) -> str:
    """What a rival of `RIVALS` says of its version; "" where it says nothing."""
    program, _ = RIVALS[name].source()
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_PATIENCE_NS / NS_PER_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next((line.strip() for line in (told.stdout + told.stderr).splitlines() if line.strip()), "")


class _Program:
    """A rival that runs from the moment it is started."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], rival: Rival, job: RivalJob) -> None:
        self._name = name
        self._process = process
        self._rival = rival
        self._job = job
        # What was under way when it was told to end, it may not have counted.
        self.slack = job.cell.connections * job.cell.pipeline

    def prepare(self, referee: Referee, connected_before: int) -> None:
        """Wait until all its connections are open."""
        wanted = connected_before + self._job.cell.connections
        give_up_ns = monotonic_ns() + _PATIENCE_NS
        while referee.connected() < wanted:
            if self._process.poll() is not None:
                raise BenchError(f"bench: {self._name} ended at once, with code {self._process.returncode}")
            if monotonic_ns() > give_up_ns:
                raise BenchError(f"bench: {self._name} did not open its connections")
            time.sleep(_LOOK_S)

    def pids(self) -> list[int]:
        return [self._process.pid]

    def begin(self) -> None:
        """It has begun."""

    def attend(self, until_ns: int) -> None:
        time.sleep(max(0, until_ns - monotonic_ns()) / NS_PER_S)

    def end(self) -> int | None:
        self._process.send_signal(self._rival.ending)
        self._process.wait(_PATIENCE_NS / NS_PER_S)
        return self._rival.count(self._job.file.read_text()) if self._rival.count else None


@contextmanager
def rival(name: str, cell: Cell, port: int, protocol: int, core: int | None, referee: Referee) -> Iterator[Contender]:
    """A rival of `RIVALS` that is there, with all its connections open. Raises BenchError."""
    chosen = RIVALS[name]
    program, _ = chosen.source()
    connected = referee.connected()
    with tempfile.TemporaryDirectory(prefix="stampede-bench-") as directory:
        job = RivalJob(cell, port, protocol, Path(directory) / "counted")
        with pinned(core):
            process = subprocess.Popen(
                [program, *chosen.arguments(job)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=directory,
                env={**os.environ, **chosen.environment(job)},
                # A session of its own: it is ours to end, and a Ctrl-C would make it say so at length.
                start_new_session=True,
            )
        with process:
            try:
                contender = _Program(name, process, chosen, job)
                contender.prepare(referee, connected)
                yield contender
            finally:
                process.kill()
