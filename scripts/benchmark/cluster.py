"""The section `cluster`: CPU per operation of the wire driver on a cluster of three primaries, against one server with
the same number of connections. All servers share a core. Replicas are removed first, because replication would take CPU
time from that core."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial

import psutil

from common.plan.schema import Driver, Embedded
from common.redis_client import open_control_client
from coordinator.embedded import EmbeddedServer, open_embedded
from scripts.benchmark.cases import Case, plan_for
from scripts.benchmark.contenders import LoadSpec
from scripts.benchmark.context import BenchContext, Findings, GoalResult, create_keys, pinned_servers, target_at
from scripts.benchmark.driver_report import rough_lines
from scripts.benchmark.server_counters import RedisCounters
from scripts.benchmark.turn_stats import Quartiles, TurnResult, cpu_s_per_million, ops_per_cpu_ratio
from scripts.benchmark.turns import ContenderSetup, run_rounds
from scripts.benchmark.workers import workers

MAX_CPU_RATIO = 1.15
_PRIMARIES = 3
_CONNECTIONS = 48
_KEYS = 1_000_000
_STANDALONE, _CLUSTER = "standalone", "cluster of three primaries"


def cluster_section(context: BenchContext) -> Findings:
    """Measure each pipeline depth. Raises BenchError, TargetError."""
    value_bytes = context.options.data_sizes[0]
    create_keys(context.target, 1, 1)
    lines, documents, goal_results = [], [], []
    all_turns: list[TurnResult] = []
    with open_embedded(Embedded.CLUSTER) as cluster, pinned_servers(cluster, context.server_cores):
        remove_replicas(cluster)
        target = target_at("redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in cluster.ports[:_PRIMARIES]))
        counters_by_name = {_STANDALONE: context.counters, _CLUSTER: RedisCounters(target, cluster.pids[:_PRIMARIES])}
        for pipeline in context.options.pipelines:
            print(f"cluster against standalone, pipeline {pipeline} ...", file=sys.stderr)
            case = Case(_CONNECTIONS, pipeline, value_bytes, min(_KEYS, context.options.keys))
            setups = {}
            for name, counters in counters_by_name.items():
                spec = LoadSpec(plan_for(case, Driver.WIRE, counters.target), 0, context.generator_core)
                setups[name] = ContenderSetup(partial(workers, spec), counters)
            turns_by_name = run_rounds(setups, context.options.rounds, context.options.turn_s)
            ratio = ops_per_cpu_ratio(turns_by_name[_STANDALONE], turns_by_name[_CLUSTER])
            for name, turns in turns_by_name.items():
                all_turns += turns
                speed = Quartiles.of([turn.ops_per_s for turn in turns]).median
                lines.append(f"  pipeline {pipeline:>2}  {name:<26} {speed:>10,.0f} {cpu_s_per_million(turns):>13.2f}")
            documents.append(
                {
                    "pipeline": pipeline,
                    "cpu_per_operation_ratio": ratio,
                    "rounds": {name: [asdict(turn) for turn in turns] for name, turns in turns_by_name.items()},
                }
            )
            goal_results.append(
                GoalResult(
                    what=f"wire driver, cluster against standalone, pipeline {pipeline}",
                    found=f"{ratio:.2f} times the CPU per operation",
                    wanted=f"at most {MAX_CPU_RATIO:.2f}",
                    verdict="ok" if ratio <= MAX_CPU_RATIO else "MISSED",
                )
            )
    rough = rough_lines(all_turns, psutil.cpu_count() or 1)
    head = f"{_CONNECTIONS} connections, values of {value_bytes} bytes; both start without keys"
    return Findings([head, f"  {'':<39} {'ops/s':>10} {'CPU s/M ops':>13}", *lines, *rough], documents, goal_results)


def remove_replicas(cluster: EmbeddedServer) -> None:
    """Make the primaries of a cluster forget their replicas."""
    primaries, replicas = cluster.ports[:_PRIMARIES], cluster.ports[_PRIMARIES : 2 * _PRIMARIES]
    ids = []
    for port in replicas:
        with open_control_client(target_at(f"redis://127.0.0.1:{port}")) as client:
            ids.append(client.execute_command("CLUSTER MYID"))
            client.execute_command("CLUSTER RESET", "HARD")
    for port in primaries:
        with open_control_client(target_at(f"redis://127.0.0.1:{port}")) as client:
            for node_id in ids:
                client.execute_command("CLUSTER FORGET", node_id)
