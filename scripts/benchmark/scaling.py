"""The section `scaling`: two worker processes of the wire driver against one, each with a null responder of its own.

Each process shares a core with its responder, so two cores are enough to show whether a second process adds what the
first one did: nothing is shared but the machine. What this cannot show is a process that has a core to itself beside
a server with a core to itself; the ratio is that of half a core's work, doubled. Two worker processes of the client
driver against one server stand below, where everybody is on all cores.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from common.plan.schema import Driver
from scripts.benchmark.cells import Cell, plan_for
from scripts.benchmark.contenders import Lane
from scripts.benchmark.drivers import processes_section
from scripts.benchmark.figures import Quartiles, cpu_s_per_million, speed_ratio
from scripts.benchmark.ground import Findings, Ground, Judged, pinned_servers
from scripts.benchmark.responders import TogetherReferee, null_responder
from scripts.benchmark.turns import Player, play
from scripts.benchmark.workers import together

ENOUGH = 1.8
_CONNECTIONS = 50
_ONE, _TWO = "one", "two"


def scaling_section(ground: Ground) -> Findings:
    """Pairs of worker and responder, then worker processes on one server."""
    lines = ["a worker process and a null responder on each of two cores, against one such pair:"]
    documents: list[Any] = []
    judged = []
    if ground.cores is None:
        lines.append("  not shown: it needs two cores and a system that can pin processes")
    else:
        for pipeline in ground.options.pipelines:
            spread, document = _pairs(ground, ground.cores, pipeline)
            lines.append(f"  pipeline {pipeline:>2}: {spread.median:.2f} ({spread.lower:.2f}..{spread.upper:.2f})")
            documents.append(document)
            judged.append(
                Judged(
                    what=f"two worker processes of the wire driver against one, pipeline {pipeline}",
                    found=f"{spread.median:.2f} times the operations a second",
                    wanted=f"{ENOUGH:.2f}",
                    verdict="ok" if spread.median >= ENOUGH else "BELOW",
                )
            )
    with pinned_servers(ground.server, ground.all_cores):
        of_processes = processes_section(ground)
    lines += ["", "worker processes of the client driver on one server, everybody on all cores:", *of_processes.lines]
    return Findings(
        lines, {"pairs": documents, "two_processes_against_one": of_processes.document}, [*judged, *of_processes.judged]
    )


def _pairs(ground: Ground, cores: tuple[int, int], pipeline: int) -> tuple[Quartiles, Any]:
    print(f"two worker processes, pipeline {pipeline}, each with a null responder ...", file=sys.stderr)
    cell = Cell(_CONNECTIONS, pipeline, ground.options.data_sizes[0], ground.options.keys)
    with ExitStack() as stack:
        responders = [stack.enter_context(null_responder(core)) for core in cores]
        lanes = [
            Lane(plan_for(cell, Driver.WIRE, responder.target), responder.port, core)
            for responder, core in zip(responders, cores, strict=True)
        ]
        readings = play(
            {
                _ONE: Player(partial(together, lanes[:1]), responders[0]),
                _TWO: Player(partial(together, lanes), TogetherReferee(responders)),
            },
            ground.options.rounds,
            ground.options.turn_s,
        )
    spread = speed_ratio(readings[_TWO], readings[_ONE])
    return spread, {
        "pipeline": pipeline,
        "ratio": asdict(spread),
        "cpu_s_per_million_operations": {name: cpu_s_per_million(turns) for name, turns in readings.items()},
        "rounds": {name: [asdict(turn) for turn in turns] for name, turns in readings.items()},
    }
