"""Contenders take turns: all of them are started at once, and all but one of them are stopped at any time.

A turn is half a second between SIGCONT and SIGSTOP. So whatever else the machine does, it does to all of them alike,
and the ratio of neighbouring turns says more than that of whole runs. A worker process collects once a second by the
clock, which goes on while it is stopped, and a round of two turns and more takes a second: so each of its turns bears
the collection of the one before it, which is more often than in a run of its own, never less. What was done in a turn
is what the server counted.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from common.clock import monotonic_ns
from common.errors import TargetError
from common.plan.schema import Target
from common.units import NS_PER_S
from coordinator.counts import read_server_counts
from coordinator.records import When
from scripts.benchmark.contenders import BenchError, Contender
from scripts.benchmark.figures import Reading, order
from scripts.benchmark.guard import guarded

TURN_S = 0.5
_WARM_UP_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Referee:
    """Who counts. pid: the server's."""

    target: Target
    pid: int

    def served(self) -> int:
        """Operations that the server has done. Raises TargetError."""
        counted = read_server_counts(self.target, When.BEFORE)
        if counted.error:
            raise TargetError(counted.error)
        return counted.calls.get("get", 0) + counted.calls.get("set", 0)


def play(referee: Referee, contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[Reading]]:
    """So many rounds after those of warming up; by contender, one reading a round.

    Raises BenchError when the server counted other operations of a contender than it did itself.
    """
    with guarded(pid for contender in contenders.values() for pid in contender.pids()):
        return _play(referee, contenders, rounds)


def _play(referee: Referee, contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[Reading]]:
    served = dict.fromkeys(contenders, 0)
    readings: dict[str, list[Reading]] = {name: [] for name in contenders}
    for contender in contenders.values():
        _stop(contender)
        contender.begin()
    for number in range(-_WARM_UP_ROUNDS, rounds):
        for name in order(list(contenders), number):
            reading = _turn(referee, contenders[name])
            served[name] += reading.operations
            if number >= 0:
                readings[name].append(reading)
    for name, contender in contenders.items():
        before = referee.served()
        _continue(contender)
        done = contender.end()
        served[name] += referee.served() - before
        if done != served[name]:
            raise BenchError(f"bench: {name} counted {done} operations, but the server {served[name]}")
    return readings


def _turn(referee: Referee, contender: Contender) -> Reading:
    processes = [psutil.Process(pid) for pid in contender.pids()]
    server = [psutil.Process(referee.pid)]
    served = referee.served()
    generator_s, server_s, machine_s, began_ns = _cpu_s(processes), _cpu_s(server), _machine_s(), monotonic_ns()
    _continue(contender)
    contender.attend(began_ns + int(TURN_S * NS_PER_S))
    ended_ns = monotonic_ns()
    _stop(contender)
    return Reading(
        operations=referee.served() - served,
        seconds=(ended_ns - began_ns) / NS_PER_S,
        generator_cpu_s=_cpu_s(processes) - generator_s,
        server_cpu_s=_cpu_s(server) - server_s,
        machine_cpu_s=_machine_s() - machine_s,
    )


def _continue(contender: Contender) -> None:
    for pid in contender.pids():
        os.kill(pid, signal.SIGCONT)


def _stop(contender: Contender) -> None:
    """Returns when all its threads have stopped. Raises BenchError when a process has ended instead."""
    pids = contender.pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise BenchError("bench: a contender ended before its time")


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _machine_s() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # User time holds that of guests already.
    return float(sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))
