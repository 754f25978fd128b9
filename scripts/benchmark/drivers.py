"""The section `drivers`: the client and the asyncio driver against baselines. Also the part of the section `scaling`
that compares two worker processes of the client driver with one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial

import psutil

from common.plan.schema import Command, Driver, Keys, Plan, Pools, Target, Values, Workload
from common.redis_client import open_control_client
from common.units import Bytes, Count
from scripts.benchmark.contenders import Contender, LoadSpec, baseline
from scripts.benchmark.context import BenchContext, Findings
from scripts.benchmark.driver_report import (
    DRIVER,
    PREGENERATED,
    TASK_DRIVER,
    DriverComparison,
    Scaling,
    comparison_lines,
    scaling_lines,
)
from scripts.benchmark.turn_stats import TurnResult
from scripts.benchmark.turns import ContenderSetup, run_rounds
from scripts.benchmark.workers import workers

BASELINES = {
    "bare client.get/.set": "methods",
    "bare execute_command": "execute",
    PREGENERATED: "execute pregenerated",
}
TASK_BASELINES = {"bare await get/set": "awaiting methods", "bare await execute": "awaiting execute"}
ONE, TWO = "one worker process", "two worker processes"
KEYS = 10_000
VALUE_BYTES = 32
_KEY_PREFIX = "bench:"

Contenders = dict[str, Callable[[LoadSpec], AbstractContextManager[Contender]]]
"""How to open each contender, by name."""


def _baselines(styles: Mapping[str, str]) -> Contenders:
    return {name: partial(baseline, style=style) for name, style in styles.items()}


THREAD_CONTENDERS: Contenders = {DRIVER: workers, **_baselines(BASELINES)}
TASK_CONTENDERS: Contenders = {TASK_DRIVER: workers, **_baselines(TASK_BASELINES)}
PROCESS_CONTENDERS: Contenders = {ONE: workers, TWO: partial(workers, processes=2)}


def plan_of(target: Target) -> Plan:
    """The plan of all contenders, without the number of threads or tasks."""
    size = Bytes(VALUE_BYTES)
    workload = Workload(
        commands=(Command(command="SET"), Command(command="GET")),
        keys=Keys(prefix=_KEY_PREFIX, minimum=Count(1), maximum=Count(KEYS)),
        values=Values(minimum_bytes=size, maximum_bytes=size),
    )
    return Plan(target=target, workload=workload)


def with_threads(plan: Plan, threads: int) -> Plan:
    """The plan with one pool of `threads` threads, each with a client instance: as in the baseline, no thread waits for
    a client."""
    pools = Pools(threads_per_pool=threads, client_instances_per_pool=threads, client_pools=1)
    return Plan(target=plan.target, workload=plan.workload, pools=(pools,))


def with_tasks(plan: Plan, tasks: int) -> Plan:
    """As `with_threads`, with tasks."""
    pools = Pools(driver=Driver.ASYNCIO, tasks_per_pool=tasks, client_instances_per_pool=tasks, client_pools=1)
    return Plan(target=plan.target, workload=plan.workload, pools=(pools,))


def create_plan_keys(plan: Plan) -> None:
    """Create all keys of the plan, so that a GET costs the same in the first round and in the last."""
    value = bytes(plan.workload.values.maximum_bytes)
    with open_control_client(plan.target) as client:
        for number in range(plan.workload.keys.minimum, plan.workload.keys.maximum + 1):
            client.execute_command("SET", f"{_KEY_PREFIX}{number}", value)


def drivers_section(context: BenchContext) -> Findings:
    """Compare the client driver and the asyncio driver with their baselines."""
    plan = plan_of(context.target)
    create_plan_keys(plan)
    cores = psutil.cpu_count() or 1
    client = _compare(context, THREAD_CONTENDERS, DRIVER, [(n, with_threads(plan, n)) for n in context.options.threads])
    asyncio = _compare(context, TASK_CONTENDERS, TASK_DRIVER, [(n, with_tasks(plan, n)) for n in context.options.tasks])
    head = f"SET and GET 1:1, {KEYS} keys, values of {VALUE_BYTES} bytes"
    return Findings(
        [head, *comparison_lines(client, cores), "", *comparison_lines(asyncio, cores)],
        {
            "client_driver_against_bare_loop": [comparison.document() for comparison in client],
            "asyncio_driver_against_bare_loop": [comparison.document() for comparison in asyncio],
        },
        [result for comparison in (*client, *asyncio) for result in comparison.goal_results()],
    )


def processes_section(context: BenchContext) -> Findings:
    """Compare two worker processes of the client driver with one; server and generators may use all cores."""
    plan = plan_of(context.target)
    create_plan_keys(plan)
    scalings = []
    for threads in context.options.scale_threads:
        print(f"{threads} threads per process, two processes against one ...", file=sys.stderr)
        turns = _run_all(context, LoadSpec(with_threads(plan, threads), context.server.port, None), PROCESS_CONTENDERS)
        scalings.append(Scaling(threads, psutil.cpu_count() or 1, turns[ONE], turns[TWO]))
    return Findings([*scaling_lines(scalings)], [scaling.document() for scaling in scalings])


def _compare(
    context: BenchContext, contenders: Contenders, driver: str, plans: Iterable[tuple[int, Plan]]
) -> list[DriverComparison]:
    comparisons = []
    for count, plan in plans:
        print(f"{count} workers of the {driver} against the baselines ...", file=sys.stderr)
        turns = _run_all(context, LoadSpec(plan, context.server.port, context.generator_core), contenders)
        comparisons.append(DriverComparison(count, turns, driver))
    return comparisons


def _run_all(context: BenchContext, spec: LoadSpec, contenders: Contenders) -> dict[str, list[TurnResult]]:
    setups = {name: ContenderSetup(partial(open_it, spec), context.counters) for name, open_it in contenders.items()}
    return run_rounds(setups, context.options.rounds, context.options.turn_s)
