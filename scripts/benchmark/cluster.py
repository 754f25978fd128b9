"""The section `cluster`: what the wire driver pays for a cluster of three masters, against the same connections to one
server, in CPU of the generator for an operation. All servers share a core; replicas are sent away, because what they
repeat would be taken from it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial

import psutil

from common.plan.schema import Driver, Embedded
from common.redis_client import open_control_client
from coordinator.embedded import EmbeddedServer, open_embedded
from scripts.benchmark.cells import Cell, plan_for
from scripts.benchmark.contenders import Lane
from scripts.benchmark.figures import Quartiles, Reading, cpu_ratio, cpu_s_per_million
from scripts.benchmark.ground import Findings, Ground, Judged, fill, patient, pinned_servers
from scripts.benchmark.referees import ServerReferee
from scripts.benchmark.report import rough_lines
from scripts.benchmark.turns import Player, play
from scripts.benchmark.workers import workers

ENOUGH = 1.15
_MASTERS = 3
_CONNECTIONS = 48
_KEYS = 1_000_000
_STANDALONE, _CLUSTER = "standalone", "cluster of three masters"


def cluster_section(ground: Ground) -> Findings:
    """Every pipeline depth. Raises BenchError, TargetError."""
    value_bytes = ground.options.data_sizes[0]
    fill(ground.target, 1, 1)
    lines, documents, judged = [], [], []
    all_turns: list[Reading] = []
    with open_embedded(Embedded.CLUSTER) as cluster, pinned_servers(cluster, ground.server_cores):
        dismiss_replicas(cluster)
        target = patient("redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in cluster.ports[:_MASTERS]))
        referees = {_STANDALONE: ground.referee, _CLUSTER: ServerReferee(target, cluster.pids[:_MASTERS])}
        for pipeline in ground.options.pipelines:
            print(f"cluster against standalone, pipeline {pipeline} ...", file=sys.stderr)
            cell = Cell(_CONNECTIONS, pipeline, value_bytes, min(_KEYS, ground.options.keys))
            readings = play(
                {
                    name: Player(
                        partial(workers, Lane(plan_for(cell, Driver.WIRE, referee.target), 0, ground.core)), referee
                    )
                    for name, referee in referees.items()
                },
                ground.options.rounds,
                ground.options.turn_s,
            )
            more = cpu_ratio(readings[_STANDALONE], readings[_CLUSTER])
            for name, turns in readings.items():
                all_turns += turns
                speed = Quartiles.of([turn.ops_per_s for turn in turns]).median
                lines.append(f"  pipeline {pipeline:>2}  {name:<26} {speed:>10,.0f} {cpu_s_per_million(turns):>13.2f}")
            documents.append(
                {
                    "pipeline": pipeline,
                    "cpu_per_operation_ratio": more,
                    "rounds": {name: [asdict(turn) for turn in turns] for name, turns in readings.items()},
                }
            )
            judged.append(
                Judged(
                    what=f"wire in a cluster against standalone, pipeline {pipeline}",
                    found=f"{more:.2f} times the CPU an operation",
                    wanted=f"at most {ENOUGH:.2f}",
                    verdict="ok" if more <= ENOUGH else "BELOW",
                )
            )
    rough = rough_lines(all_turns, psutil.cpu_count() or 1)
    head = f"{_CONNECTIONS} connections, values of {value_bytes} bytes; keys are not there at first, in both alike"
    return Findings([head, f"  {'':<39} {'ops/s':>10} {'CPU s/M ops':>13}", *lines, *rough], documents, judged)


def dismiss_replicas(cluster: EmbeddedServer) -> None:
    """Leave its masters alone in it."""
    masters, replicas = cluster.ports[:_MASTERS], cluster.ports[_MASTERS : 2 * _MASTERS]
    names = []
    for port in replicas:
        with open_control_client(patient(f"redis://127.0.0.1:{port}")) as client:
            names.append(client.execute_command("CLUSTER MYID"))
            client.execute_command("CLUSTER RESET", "HARD")
    for port in masters:
        with open_control_client(patient(f"redis://127.0.0.1:{port}")) as client:
            for name in names:
                client.execute_command("CLUSTER FORGET", name)
