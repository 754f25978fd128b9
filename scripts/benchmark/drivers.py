"""The section `drivers`: the drivers of redis-py against loops of redis-py calls, and what its section of the report
says of two worker processes against one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial

import psutil

from common.plan.schema import Command, Driver, Keys, Plan, Pools, Target, Values, Workload
from common.redis_client import open_control_client
from common.units import Bytes, Count
from scripts.benchmark.contenders import Contender, Lane, bare
from scripts.benchmark.figures import Reading
from scripts.benchmark.ground import Findings, Ground
from scripts.benchmark.report import (
    DRIVER,
    LEAST,
    TASK_DRIVER,
    DriverComparison,
    Scaling,
    comparison_lines,
    scaling_lines,
)
from scripts.benchmark.turns import Player, play
from scripts.benchmark.workers import workers

BARE = {"bare client.get/.set": "methods", "bare execute_command": "execute", LEAST: "execute drawn before"}
BARE_TASKS = {"bare await get/set": "awaiting methods", "bare await execute": "awaiting execute"}
ONE, TWO = "one worker process", "two worker processes"
KEYS = 10_000
VALUE_BYTES = 32
_KEY_PREFIX = "bench:"

Entrants = dict[str, Callable[[Lane], AbstractContextManager[Contender]]]

COMPARED: Entrants = {DRIVER: workers, **{name: partial(bare, style=style) for name, style in BARE.items()}}
COMPARED_TASKS: Entrants = {TASK_DRIVER: workers, **{name: partial(bare, style=s) for name, s in BARE_TASKS.items()}}
SCALED: Entrants = {ONE: workers, TWO: partial(workers, processes=2)}


def plan_of(target: Target) -> Plan:
    """What everybody is to do, but for the number of threads."""
    size = Bytes(VALUE_BYTES)
    workload = Workload(
        commands=(Command(command="SET"), Command(command="GET")),
        keys=Keys(prefix=_KEY_PREFIX, minimum=Count(1), maximum=Count(KEYS)),
        values=Values(minimum_bytes=size, maximum_bytes=size),
    )
    return Plan(target=target, workload=workload)


def with_threads(plan: Plan, threads: int) -> Plan:
    """A pool of so many threads and as many client instances: nobody waits for a client in the bare loop either."""
    pools = Pools(threads_per_pool=threads, client_instances_per_pool=threads, client_pools=1)
    return Plan(target=plan.target, workload=plan.workload, pools=(pools,))


def with_tasks(plan: Plan, tasks: int) -> Plan:
    """The same for tasks."""
    pools = Pools(driver=Driver.ASYNCIO, tasks_per_pool=tasks, client_instances_per_pool=tasks, client_pools=1)
    return Plan(target=plan.target, workload=plan.workload, pools=(pools,))


def fill_few(plan: Plan) -> None:
    """Make all keys exist, so that a GET costs the same in the first round and in the last."""
    value = bytes(plan.workload.values.maximum_bytes)
    with open_control_client(plan.target) as client:
        for number in range(plan.workload.keys.minimum, plan.workload.keys.maximum + 1):
            client.execute_command("SET", f"{_KEY_PREFIX}{number}", value)


def drivers_section(ground: Ground) -> Findings:
    """Threads and tasks, each against its bare loops."""
    plan = plan_of(ground.target)
    fill_few(plan)
    cores = psutil.cpu_count() or 1
    of_threads = _compare(ground, COMPARED, DRIVER, [(n, with_threads(plan, n)) for n in ground.options.threads])
    of_tasks = _compare(ground, COMPARED_TASKS, TASK_DRIVER, [(n, with_tasks(plan, n)) for n in ground.options.tasks])
    head = f"SET and GET 1:1, {KEYS} keys, values of {VALUE_BYTES} bytes"
    return Findings(
        [head, *comparison_lines(of_threads, cores), "", *comparison_lines(of_tasks, cores)],
        {
            "client_driver_against_bare_loop": [comparison.document() for comparison in of_threads],
            "asyncio_driver_against_bare_loop": [comparison.document() for comparison in of_tasks],
        },
        [judged for comparison in (*of_threads, *of_tasks) for judged in comparison.verdicts()],
    )


def processes_section(ground: Ground) -> Findings:
    """Two worker processes against one, everybody on all cores."""
    plan = plan_of(ground.target)
    fill_few(plan)
    scalings = []
    for threads in ground.options.scale_threads:
        print(f"{threads} threads a process, two processes against one ...", file=sys.stderr)
        readings = _play_all(ground, Lane(with_threads(plan, threads), ground.server.port, None), SCALED)
        scalings.append(Scaling(threads, psutil.cpu_count() or 1, readings[ONE], readings[TWO]))
    return Findings([*scaling_lines(scalings)], [scaling.document() for scaling in scalings])


def _compare(
    ground: Ground, entrants: Entrants, driver: str, plans: Iterable[tuple[int, Plan]]
) -> list[DriverComparison]:
    comparisons = []
    for count, plan in plans:
        print(f"{count} workers of the {driver} against the bare loops ...", file=sys.stderr)
        readings = _play_all(ground, Lane(plan, ground.server.port, ground.core), entrants)
        comparisons.append(DriverComparison(count, readings, driver))
    return comparisons


def _play_all(ground: Ground, lane: Lane, entrants: Entrants) -> dict[str, list[Reading]]:
    """Readings of these contenders, by name."""
    referee = ground.referee
    players = {name: Player(partial(enter, lane), referee) for name, enter in entrants.items()}
    return play(players, ground.options.rounds, ground.options.turn_s)
