"""Rivals: the other programs of the comparison, their command lines for a case, and the operations that they count.

memtier_benchmark alternates SET and GET on each connection, from one thread. redis-benchmark and resp-benchmark send a
single command, so each runs as two contenders, SET and GET, whose turns are combined later. All rivals send the same
value again and again, which is the fastest that they offer; our drivers draw a value for each SET.

Only Locust's count at its end is used. memtier_benchmark reports a count too if interrupted, but one of its threads
then adds up while another still counts, and one second may be counted twice.
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
from scripts.benchmark.cases import FIRST_KEY, KEY_PREFIX, Case, short_prefix
from scripts.benchmark.contenders import BenchError, Contender, pinned
from scripts.benchmark.rivals_environment import ROOT, set_up
from scripts.benchmark.server_counters import ServerCounters

_TIMEOUT_NS = 30 * NS_PER_S
_POLL_S = 0.02
_ENDLESS_S = 100_000
_ENDLESS_REQUESTS = 10**9


@dataclass(frozen=True, slots=True)
class RivalJob:
    """The load for a rival. protocol: RESP version of redis-py clients. count_file: the rival's count, if any."""

    case: Case
    port: int
    protocol: int
    count_file: Path


@dataclass(frozen=True, slots=True)
class Rival:
    """A program. find: returns (path, "") or (path, why the program is missing). end_signal: ends the program. count:
    parses the text of `count_file`; None if the program reports no count."""

    find: Callable[[], tuple[str, str]]
    arguments: Callable[[RivalJob], list[str]]
    end_signal: signal.Signals = signal.SIGKILL
    count: Callable[[str], int] | None = None
    environment: Callable[[RivalJob], Mapping[str, str]] = lambda _: {}


def _on_path(name: str) -> Callable[[], tuple[str, str]]:
    found = shutil.which(name)
    return lambda: (found or "", "" if found else "not on PATH")


def _packaged(name: str) -> Callable[[], tuple[str, str]]:
    def find() -> tuple[str, str]:
        binaries, problem = set_up()
        return str(binaries / name), problem

    return find


def memtier_arguments(job: RivalJob) -> list[str]:
    """One thread. With --distinct-client-seed, because otherwise all connections draw the same sequence of keys."""
    case = job.case
    return [
        *("--host", "127.0.0.1", "--port", str(job.port), "--threads", "1", "--clients", str(case.connections)),
        *("--pipeline", str(case.pipeline), "--data-size", str(case.value_bytes), "--ratio", "1:1"),
        *("--key-pattern", "R:R", "--key-prefix", KEY_PREFIX, "--distinct-client-seed"),
        *("--key-minimum", str(FIRST_KEY), "--key-maximum", str(case.last_key)),
        *("--test-time", str(_ENDLESS_S), "--hide-histogram"),
    ]


def _redis_benchmark(*command: str) -> Callable[[RivalJob], list[str]]:
    def arguments(job: RivalJob) -> list[str]:
        case = job.case
        return [
            *("-h", "127.0.0.1", "-p", str(job.port), "-c", str(case.connections), "-P", str(case.pipeline)),
            *("-n", str(_ENDLESS_REQUESTS), "-r", str(case.keys)),
            *_fill_in(command, f"{KEY_PREFIX}1__rand_int__", case),
        ]

    return arguments


def _resp_benchmark(*command: str) -> Callable[[RivalJob], list[str]]:
    def arguments(job: RivalJob) -> list[str]:
        case = job.case
        key = f"{short_prefix(case.keys)}{{rand {case.keys}}}"
        return [
            *("-h", "127.0.0.1", "-p", str(job.port), "-c", str(case.connections), "-P", str(case.pipeline)),
            # Core 0 is the first core of the process's affinity, not of the machine.
            *("--cores", "0", "-s", str(_ENDLESS_S), " ".join(_fill_in(command, key, case))),
        ]

    return arguments


def _fill_in(command: tuple[str, ...], key: str, case: Case) -> list[str]:
    """The command with its placeholders KEY and VALUE replaced."""
    return [{"KEY": key, "VALUE": "x" * case.value_bytes}.get(word, word) for word in command]


def locust_arguments(job: RivalJob) -> list[str]:
    """One user per connection, all spawned at once."""
    users = str(job.case.connections)
    return [
        *("--locustfile", str(ROOT / "scripts/benchmark/locustfile.py"), "--headless", "--users", users),
        *("--spawn-rate", users, "--loglevel", "ERROR", "--only-summary"),
    ]


def _locust_environment(job: RivalJob) -> Mapping[str, str]:
    job_fields = {
        "port": job.port,
        "protocol": job.protocol,
        "key_prefix": KEY_PREFIX,
        "first_key": FIRST_KEY,
        "keys": job.case.keys,
        "value_bytes": job.case.value_bytes,
        "count_file": str(job.count_file),
    }
    return {"STAMPEDE_BENCH": json.dumps(job_fields)}


RIVALS: dict[str, Rival] = {
    "memtier_benchmark": Rival(_on_path("memtier_benchmark"), memtier_arguments),
    "redis-benchmark SET": Rival(_on_path("redis-benchmark"), _redis_benchmark("SET", "KEY", "VALUE")),
    "redis-benchmark GET": Rival(_on_path("redis-benchmark"), _redis_benchmark("GET", "KEY")),
    "resp-benchmark SET": Rival(_packaged("resp-benchmark"), _resp_benchmark("SET", "KEY", "VALUE")),
    "resp-benchmark GET": Rival(_packaged("resp-benchmark"), _resp_benchmark("GET", "KEY")),
    "Locust": Rival(_packaged("locust"), locust_arguments, signal.SIGTERM, int, _locust_environment),
}


def release(name: str) -> str:
    """The first line that the rival prints for --version; "" if it prints none."""
    program, _ = RIVALS[name].find()
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_NS / NS_PER_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next((line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()), "")


class _RunningRival:
    """A rival (`Contender`), which loads the server as soon as its process runs."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], rival: Rival, job: RivalJob) -> None:
        self._name = name
        self._process = process
        self._rival = rival
        self._job = job
        # A rival may not count the requests that are in flight when it ends.
        self.max_uncounted = job.case.connections * job.case.pipeline

    def prepare(self, counters: ServerCounters, connections_before: int) -> None:
        """Wait until all connections of the rival are open."""
        wanted = connections_before + self._job.case.connections
        give_up_ns = monotonic_ns() + _TIMEOUT_NS
        while counters.connections() < wanted:
            if self._process.poll() is not None:
                raise BenchError(f"bench: {self._name} ended at once, with code {self._process.returncode}")
            if monotonic_ns() > give_up_ns:
                raise BenchError(f"bench: {self._name} did not open its connections")
            time.sleep(_POLL_S)

    def pids(self) -> list[int]:
        return [self._process.pid]

    def start_load(self) -> None:
        """Nothing to do: the load has already started."""

    def wait_until(self, until_ns: int) -> None:
        time.sleep(max(0, until_ns - monotonic_ns()) / NS_PER_S)

    def stop_load(self) -> int | None:
        self._process.send_signal(self._rival.end_signal)
        self._process.wait(_TIMEOUT_NS / NS_PER_S)
        return self._rival.count(self._job.count_file.read_text()) if self._rival.count else None


@contextmanager
def rival(
    name: str, case: Case, port: int, protocol: int, core: int | None, counters: ServerCounters
) -> Iterator[Contender]:
    """Start a rival of `RIVALS`, and wait until all its connections are open. Raises BenchError."""
    chosen = RIVALS[name]
    program, _ = chosen.find()
    connections_before = counters.connections()
    with tempfile.TemporaryDirectory(prefix="stampede-bench-") as directory:
        job = RivalJob(case, port, protocol, Path(directory) / "count")
        with pinned(core):
            process = subprocess.Popen(
                [program, *chosen.arguments(job)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=directory,
                env={**os.environ, **chosen.environment(job)},
                # Own session: Ctrl-C must not reach the process, which would print a traceback.
                start_new_session=True,
            )
        with process:
            try:
                contender = _RunningRival(name, process, chosen, job)
                contender.prepare(counters, connections_before)
                yield contender
            finally:
                process.kill()
