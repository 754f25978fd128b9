"""The section `scaling`: two worker processes of the wire driver against one, each with a null server of its own.

Each process shares a core with its null server. So two cores are enough to show whether a second process doubles the
throughput, because the two pairs share nothing but the machine. The first table does not show how a process scales that
has a whole core, against a server that has a whole core. The second table shows two worker processes of the client
driver that share one server and all cores.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from common.plan.schema import Driver
from scripts.benchmark.cases import Case, plan_for
from scripts.benchmark.contenders import LoadSpec
from scripts.benchmark.context import BenchContext, Findings, GoalResult, pinned_servers
from scripts.benchmark.drivers import processes_section
from scripts.benchmark.null_server import SummedCounters, open_null_server
from scripts.benchmark.turn_stats import Quartiles, cpu_s_per_million, throughput_ratio
from scripts.benchmark.turns import ContenderSetup, run_rounds
from scripts.benchmark.workers import several_workers

MIN_RATIO = 1.8
_CONNECTIONS = 50
_ONE, _TWO = "one", "two"


def scaling_section(context: BenchContext) -> Findings:
    """Measure pairs of worker and null server, then worker processes that share one server."""
    lines = ["wire driver: a worker process and a null server on each of two cores, against one such pair:"]
    documents: list[Any] = []
    goal_results = []
    if context.cores is None:
        lines.append("  not measured: needs two cores, and a system that can pin processes")
    else:
        for pipeline in context.options.pipelines:
            ratio, document = _measure_pairs(context, context.cores, pipeline)
            lines.append(f"  pipeline {pipeline:>2}: {ratio.median:.2f} ({ratio.lower:.2f}..{ratio.upper:.2f})")
            documents.append(document)
            goal_results.append(
                GoalResult(
                    what=f"two worker processes of the wire driver against one, pipeline {pipeline}",
                    found=f"{ratio.median:.2f} times the operations per second",
                    wanted=f"{MIN_RATIO:.2f}",
                    verdict="ok" if ratio.median >= MIN_RATIO else "MISSED",
                )
            )
    with pinned_servers(context.server, context.all_cores):
        processes = processes_section(context)
    lines += ["", "client driver: worker processes that share one server; all may use all cores:", *processes.lines]
    return Findings(lines, {"pairs": documents, "two_processes_against_one": processes.document}, goal_results)


def _measure_pairs(context: BenchContext, cores: tuple[int, int], pipeline: int) -> tuple[Quartiles, Any]:
    print(f"two worker processes, pipeline {pipeline}, each with a null server ...", file=sys.stderr)
    case = Case(_CONNECTIONS, pipeline, context.options.data_sizes[0], context.options.keys)
    with ExitStack() as stack:
        null_servers = [stack.enter_context(open_null_server(core)) for core in cores]
        specs = [
            LoadSpec(plan_for(case, Driver.WIRE, null_server.target), null_server.port, core)
            for null_server, core in zip(null_servers, cores, strict=True)
        ]
        turns = run_rounds(
            {
                _ONE: ContenderSetup(partial(several_workers, specs[:1]), null_servers[0]),
                _TWO: ContenderSetup(partial(several_workers, specs), SummedCounters(null_servers)),
            },
            context.options.rounds,
            context.options.turn_s,
        )
    ratio = throughput_ratio(turns[_TWO], turns[_ONE])
    return ratio, {
        "pipeline": pipeline,
        "ratio": asdict(ratio),
        "cpu_s_per_million_operations": {name: cpu_s_per_million(of_one) for name, of_one in turns.items()},
        "rounds": {name: [asdict(turn) for turn in of_one] for name, of_one in turns.items()},
    }
