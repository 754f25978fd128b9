"""The sections `rivals` and `ceiling`: all contenders in each case."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import psutil

from common.plan.schema import Driver, Target
from scripts.benchmark.case_report import CaseResult, case_lines
from scripts.benchmark.cases import Case, keys_that_fit, plan_for
from scripts.benchmark.contenders import LoadSpec, baseline
from scripts.benchmark.context import BenchContext, Findings, Options, create_keys
from scripts.benchmark.null_server import open_null_server
from scripts.benchmark.rival_programs import RIVALS, release, rival
from scripts.benchmark.server_counters import ServerCounters
from scripts.benchmark.turn_stats import combine_halves
from scripts.benchmark.turns import ContenderSetup, run_rounds
from scripts.benchmark.workers import workers

HALVES = (" SET", " GET")
DRIVERS = {driver.value: driver for driver in (Driver.WIRE, Driver.CLIENT, Driver.ASYNCIO)}
BASELINE = "bare"
CONTENDERS = (*DRIVERS, "memtier_benchmark", "redis-benchmark", "resp-benchmark", "Locust", BASELINE)
_CEILING_CONTENDERS = (*DRIVERS, "memtier_benchmark")
_CEILING_CONNECTIONS = 50


def programs_of(name: str) -> Sequence[str]:
    """The keys of `RIVALS` that make up a contender: one, or two halves; none for our drivers and the baseline."""
    return [program for program in RIVALS if program == name or program in {name + half for half in HALVES}]


def missing_programs(names: Sequence[str]) -> dict[str, str]:
    """The contenders whose program is not available, and why."""
    problems = {name: [RIVALS[program].find()[1] for program in programs_of(name)] for name in names}
    return {name: found[0] for name, found in problems.items() if any(found)}


def why_unsupported(name: str, case: Case) -> str:
    """Why a contender cannot run a case; "" if it can."""
    return "Locust has no pipelines" if name == "Locust" and case.pipeline > 1 else ""


def setups_of(
    name: str, case: Case, target: Target, port: int, core: int | None, counters: ServerCounters
) -> dict[str, ContenderSetup]:
    """The setup of a contender; for one that sends a single command, the setups of its two halves."""
    if name in DRIVERS:
        spec = LoadSpec(plan_for(case, DRIVERS[name], target), port, core)
        return {name: ContenderSetup(partial(workers, spec), counters)}
    if name == BASELINE:
        spec = LoadSpec(plan_for(case, Driver.CLIENT, target), port, core)
        style = "methods" if case.pipeline == 1 else "pipelines"
        return {name: ContenderSetup(partial(baseline, spec, style), counters)}
    return {
        program: ContenderSetup(partial(rival, program, case, port, target.protocol, core, counters), counters)
        for program in programs_of(name)
    }


def measure_case(
    names: Sequence[str], case: Case, setups_by_name: Callable[[str], dict[str, ContenderSetup]], options: Options
) -> CaseResult:
    """Run all rounds of a case with the contenders that support it."""
    print(f"{case.title} ...", file=sys.stderr)
    unsupported = {name: problem for name in names if (problem := why_unsupported(name, case))}
    supported = [name for name in names if name not in unsupported]
    setups = {part: setup for name in supported for part, setup in setups_by_name(name).items()}
    measured = run_rounds(setups, options.rounds, options.turn_s)
    turns = {
        name: measured[name] if name in measured else combine_halves(*(measured[name + half] for half in HALVES))
        for name in supported
    }
    return CaseResult(case, turns, unsupported)


def rivals_section(context: BenchContext) -> Findings:
    """Measure all cases against the server."""
    options = context.options
    missing = missing_programs(options.contenders)
    names = [name for name in options.contenders if name not in missing]
    releases = {name: release(programs_of(name)[0]) for name in names if programs_of(name)}
    notes = [
        *(f"{name}: {text}" for name, text in releases.items()),
        *(f"{name} is missing: {problem}" for name, problem in missing.items()),
    ]
    results = []
    for value_bytes in options.data_sizes:
        keys = keys_that_fit(options.keys, value_bytes, psutil.virtual_memory().available)
        if keys < options.keys:
            notes.append(f"values of {value_bytes} bytes: {keys} keys fit into memory, not {options.keys}")
        print(f"creating {keys} keys of {value_bytes} bytes ...", file=sys.stderr)
        create_keys(context.target, keys, value_bytes, short_too="resp-benchmark" in names)
        for connections in options.connections:
            for pipeline in options.pipelines:
                case = Case(connections, pipeline, value_bytes, keys)

                def setups(name: str, case: Case = case) -> dict[str, ContenderSetup]:
                    port, core = context.server.port, context.generator_core
                    return setups_of(name, case, context.target, port, core, context.counters)

                results.append(measure_case(names, case, setups, options))
    create_keys(context.target, 1, 1)
    return Findings(
        [*notes, *case_lines(results, psutil.cpu_count() or 1)],
        {"absent": missing, "releases": releases, "cells": [result.document() for result in results]},
        [goal for result in results for goal in result.goal_results()],
    )


def ceiling_section(context: BenchContext) -> Findings:
    """Measure drivers and memtier_benchmark against a null server: how fast they are if the server costs nothing."""
    options = context.options
    wanted = [name for name in _CEILING_CONTENDERS if name in options.contenders]
    missing = missing_programs(wanted)
    names = [name for name in wanted if name not in missing]
    results = []
    with open_null_server(context.server_core) as null_server:
        for pipeline in options.pipelines:
            case = Case(_CEILING_CONNECTIONS, pipeline, options.data_sizes[0], options.keys)

            def setups(name: str, case: Case = case) -> dict[str, ContenderSetup]:
                core = context.generator_core
                return setups_of(name, case, null_server.target, null_server.port, core, null_server)

            results.append(measure_case(names, case, setups, options))
    note = "against a null server; if its CPU is near 100%, it was the limit, and the generator's ceiling is higher"
    return Findings([note, *case_lines(results, psutil.cpu_count() or 1)], [result.document() for result in results])
