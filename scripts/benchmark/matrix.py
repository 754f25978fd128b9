"""The sections `rivals` and `ceiling`: cells of the matrix, all contenders in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import psutil

from common.plan.schema import Driver, Target
from scripts.benchmark.cells import Cell, keys_that_fit, plan_for
from scripts.benchmark.contenders import Lane, bare
from scripts.benchmark.figures import even
from scripts.benchmark.ground import Findings, Ground, Options, fill
from scripts.benchmark.referees import Referee
from scripts.benchmark.responders import null_responder
from scripts.benchmark.rivals import RIVALS, release, rival
from scripts.benchmark.table import Measured, matrix_judged, matrix_lines
from scripts.benchmark.turns import Player, play
from scripts.benchmark.workers import workers

HALVES = (" SET", " GET")
DRIVERS = {driver.value: driver for driver in (Driver.WIRE, Driver.CLIENT, Driver.ASYNCIO)}
BARE = "bare"
CONTENDERS = (*DRIVERS, "memtier_benchmark", "redis-benchmark", "resp-benchmark", "Locust", BARE)
_SEVERAL_AT_ONCE = "it has no pipelines"
_CEILING_CONTENDERS = (*DRIVERS, "memtier_benchmark")
_CEILING_CONNECTIONS = 50


def parts(name: str) -> Sequence[str]:
    """The rivals of `RIVALS` that make up a contender; none where it is ours."""
    return [part for part in RIVALS if part == name or part in {name + half for half in HALVES}]


def absent(names: Sequence[str]) -> dict[str, str]:
    """Which of these contenders are not here, and why."""
    problems = {name: [RIVALS[part].source()[1] for part in parts(name)] for name in names}
    return {name: found[0] for name, found in problems.items() if any(found)}


def unable(name: str, cell: Cell) -> str:
    """Why a contender cannot do a cell; "" where it can. The bare loop and the drivers of redis-py have a thread or a
    task for each connection."""
    return _SEVERAL_AT_ONCE if name == "Locust" and cell.pipeline > 1 else ""


def players(name: str, cell: Cell, target: Target, port: int, core: int | None, referee: Referee) -> dict[str, Player]:
    """Who plays for a contender: itself, or its two halves."""
    if name in DRIVERS:
        lane = Lane(plan_for(cell, DRIVERS[name], target), port, core)
        return {name: Player(partial(workers, lane), referee)}
    if name == BARE:
        lane = Lane(plan_for(cell, Driver.CLIENT, target), port, core)
        style = "methods" if cell.pipeline == 1 else "pipelines"
        return {name: Player(partial(bare, lane, style), referee)}
    return {
        part: Player(partial(rival, part, cell, port, target.protocol, core, referee), referee) for part in parts(name)
    }


def measure(names: Sequence[str], cell: Cell, enter: Callable[[str], dict[str, Player]], options: Options) -> Measured:
    """All rounds of a cell, by those that can do it."""
    print(f"{cell.title} ...", file=sys.stderr)
    cannot = {name: problem for name in names if (problem := unable(name, cell))}
    able = [name for name in names if name not in cannot]
    playing = {name: enter(name) for name in able}
    read = play(
        {part: player for each in playing.values() for part, player in each.items()}, options.rounds, options.turn_s
    )
    readings = {name: read[name] if name in read else even(*(read[name + half] for half in HALVES)) for name in playing}
    return Measured(cell, readings, cannot)


def rivals_section(ground: Ground) -> Findings:
    """All cells against the server."""
    options = ground.options
    missing = absent(options.contenders)
    names = [name for name in options.contenders if name not in missing]
    releases = {name: release(parts(name)[0]) for name in names if parts(name)}
    notes = [
        *(f"{name}: {told}" for name, told in releases.items()),
        *(f"{name} is absent: {problem}" for name, problem in missing.items()),
    ]
    measured = []
    for value_bytes in options.data_sizes:
        keys = keys_that_fit(options.keys, value_bytes, psutil.virtual_memory().available)
        if keys < options.keys:
            notes.append(f"values of {value_bytes} bytes: {keys} keys instead of {options.keys}, for want of memory")
        print(f"filling {keys} keys of {value_bytes} bytes ...", file=sys.stderr)
        fill(ground.target, keys, value_bytes, short_too="resp-benchmark" in names)
        for connections in options.connections:
            for pipeline in options.pipelines:
                cell = Cell(connections, pipeline, value_bytes, keys)
                referee = ground.referee

                def enter(name: str, cell: Cell = cell, referee: Referee = referee) -> dict[str, Player]:
                    return players(name, cell, ground.target, ground.server.port, ground.core, referee)

                measured.append(measure(names, cell, enter, options))
    fill(ground.target, 1, 1)
    return Findings(
        [*notes, *matrix_lines(measured, psutil.cpu_count() or 1)],
        {"absent": missing, "releases": releases, "cells": [one.document() for one in measured]},
        matrix_judged(measured),
    )


def ceiling_section(ground: Ground) -> Findings:
    """Drivers and memtier_benchmark against a null responder: what they do when the server costs nothing."""
    options = ground.options
    wanted = [name for name in _CEILING_CONTENDERS if name in options.contenders]
    missing = absent(wanted)
    names = [name for name in wanted if name not in missing]
    measured = []
    with null_responder(ground.server_core) as responder:
        for pipeline in options.pipelines:
            cell = Cell(_CEILING_CONNECTIONS, pipeline, options.data_sizes[0], options.keys)

            def enter(name: str, cell: Cell = cell) -> dict[str, Player]:
                return players(name, cell, responder.target, responder.port, ground.core, responder)

            measured.append(measure(names, cell, enter, options))
    note = (
        "against a null responder; where its CPU is near 100%, it was the limit and the generator's ceiling is higher"
    )
    return Findings([note, *matrix_lines(measured, psutil.cpu_count() or 1)], [one.document() for one in measured])
