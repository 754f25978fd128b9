"""Contenders take turns: all are started at once, and all but one are paused at any time.

A turn is the time between SIGCONT and SIGSTOP, by default one second. So other work on the machine affects all
contenders alike, and the ratio of two neighbouring turns says more than the ratio of two whole runs. The server counts
the operations of a turn. A worker process collects metrics once per second, and its clock also runs during pauses. So
a turn of one second includes one collection, as a second of a real run does; with shorter turns, collections are more
frequent.

Other programs are paused in the same way, although they were not written for this. Without pauses, contenders would be
measured one after the other, in different minutes. A pause costs little, and the same for all. At a pause some requests
are in flight: the server counts them in this turn, and the contender reads their replies in its next turn. So in each
turn a contender sends as many requests as it reads replies.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from common.clock import monotonic_ns
from common.units import NS_PER_S
from scripts.benchmark.contenders import BenchError, Contender
from scripts.benchmark.server_counters import ServerCounters
from scripts.benchmark.turn_stats import TurnResult, turn_order
from scripts.benchmark.watchdog import watchdog

_WARM_UP_ROUNDS = 1
_IDLE_CHECK_S = 0.005
_MAX_IDLE_CHECKS = 400
_PAUSE_CHECK_S = 0.0002


@dataclass(frozen=True, slots=True)
class ContenderSetup:
    """How to open a contender, and the counters of the server that the contender loads."""

    open: Callable[[], AbstractContextManager[Contender]]
    counters: ServerCounters


def run_rounds(setups: Mapping[str, ContenderSetup], rounds: int, turn_s: float) -> dict[str, list[TurnResult]]:
    """Run this many rounds after one to warm up. Returns one turn per round for each contender.

    Raises BenchError if the server's count of a contender's operations differs from the contender's own.
    """
    with watchdog() as watch, ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        served: dict[str, int] = {}
        for name, setup in setups.items():
            before = setup.counters.served()
            contenders[name] = contender = stack.enter_context(setup.open())
            watch(contender.pids())
            _pause(contender)
            served[name] = _served_when_idle(setup.counters) - before
            contender.start_load()
        return _run_rounds(setups, contenders, served, rounds, turn_s)


def _run_rounds(
    setups: Mapping[str, ContenderSetup],
    contenders: Mapping[str, Contender],
    served: dict[str, int],
    rounds: int,
    turn_s: float,
) -> dict[str, list[TurnResult]]:
    turns: dict[str, list[TurnResult]] = {name: [] for name in contenders}
    for number in range(-_WARM_UP_ROUNDS, rounds):
        for name in turn_order(list(contenders), number):
            turn = _run_turn(setups[name].counters, contenders[name], turn_s)
            served[name] += turn.operations
            if number >= 0:
                turns[name].append(turn)
    for name, contender in contenders.items():
        counters = setups[name].counters
        before = counters.served()
        _resume(contender)
        done = contender.stop_load()
        served[name] += _served_when_idle(counters) - before
        if done is not None and not 0 <= served[name] - done <= contender.max_uncounted:
            raise BenchError(f"bench: {name} counted {done} operations, but the server {served[name]}")
    return turns


def _run_turn(counters: ServerCounters, contender: Contender, turn_s: float) -> TurnResult:
    processes = [psutil.Process(pid) for pid in contender.pids()]
    server = [psutil.Process(pid) for pid in counters.pids()]
    served = counters.served()
    generator_s, server_s, machine_s, began_ns = _cpu_s(processes), _cpu_s(server), _machine_s(), monotonic_ns()
    _resume(contender)
    contender.wait_until(began_ns + int(turn_s * NS_PER_S))
    ended_ns = monotonic_ns()
    _pause(contender)
    return TurnResult(
        operations=_served_when_idle(counters) - served,
        seconds=(ended_ns - began_ns) / NS_PER_S,
        generator_cpu_s=_cpu_s(processes) - generator_s,
        server_cpu_s=_cpu_s(server) - server_s,
        machine_cpu_s=_machine_s() - machine_s,
    )


def _served_when_idle(counters: ServerCounters) -> int:
    """Wait until the server has served all requests of paused contenders, and return its count. Raises BenchError if
    the count keeps rising."""
    served = counters.served()
    for _ in range(_MAX_IDLE_CHECKS):
        time.sleep(_IDLE_CHECK_S)
        before, served = served, counters.served()
        if served == before:
            return served
    raise BenchError(
        "bench: the server is still busy after a turn, although all contenders are paused: "
        "another program loads the server, or resumed a contender"
    )


def _resume(contender: Contender) -> None:
    for pid in contender.pids():
        os.kill(pid, signal.SIGCONT)


def _pause(contender: Contender) -> None:
    """Pause the contender, and wait until all its threads have stopped. Raises BenchError if a process has ended."""
    pids = contender.pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        while not _is_paused(pid):
            time.sleep(_PAUSE_CHECK_S)


def _is_paused(pid: int) -> bool:
    """Whether all threads of a process have stopped; also for processes that are not our children. Raises BenchError if
    the process has ended."""
    states = set()
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):  # the thread has just ended
            states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    if not states or states & {"Z", "X"}:
        raise BenchError("bench: a contender ended early")
    return states == {"T"}


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _machine_s() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # User time includes guest time.
    return float(sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))
