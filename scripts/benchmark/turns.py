"""Contenders take turns: all of them are started at once, and all but one of them are stopped at any time.

A turn is a second between SIGCONT and SIGSTOP. So whatever else the machine does, it does to all of them alike, and the
ratio of neighbouring turns says more than that of whole runs. A worker process collects once a second by the clock,
which goes on while it is stopped: so each of its turns bears one collection, as does a second of a run of its own; with
shorter turns it collects more often than there, never less. What was done in a turn is what the server counted.

The programs of others take their turns in the same way, though they know nothing of it. A window within a run of their
own would leave their sockets alone, but then two contenders are compared over minutes that are not the same. What a
stop costs is small and the same for all of them: a turn begins with the replies to what was under way at the stop, and
ends with as many requests that were sent, and counted by the server once it has come to rest, but whose replies are
read in the next turn. So in each turn as many replies are read as requests sent.
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
from scripts.benchmark.figures import Reading, order
from scripts.benchmark.guard import guarding
from scripts.benchmark.referees import Referee

_WARM_UP_ROUNDS = 1
_REST_S = 0.005
_STOP_S = 0.0002
_RESTLESS = 400


@dataclass(frozen=True, slots=True)
class Player:
    """A contender that is yet to be started, and who counts for it."""

    enter: Callable[[], AbstractContextManager[Contender]]
    referee: Referee


def play(players: Mapping[str, Player], rounds: int, turn_s: float) -> dict[str, list[Reading]]:
    """So many rounds after one of warming up; by contender, one reading a round.

    Raises BenchError when the server counted other operations of a contender than it did itself.
    """
    with guarding() as guard, ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        served: dict[str, int] = {}
        for name, player in players.items():
            before = player.referee.served()
            contenders[name] = contender = stack.enter_context(player.enter())
            guard(contender.pids())
            _stop(contender)
            served[name] = _settled(player.referee) - before
            contender.begin()
        return _play(players, contenders, served, rounds, turn_s)


def _play(
    players: Mapping[str, Player],
    contenders: Mapping[str, Contender],
    served: dict[str, int],
    rounds: int,
    turn_s: float,
) -> dict[str, list[Reading]]:
    readings: dict[str, list[Reading]] = {name: [] for name in contenders}
    for number in range(-_WARM_UP_ROUNDS, rounds):
        for name in order(list(contenders), number):
            reading = _turn(players[name].referee, contenders[name], turn_s)
            served[name] += reading.operations
            if number >= 0:
                readings[name].append(reading)
    for name, contender in contenders.items():
        referee = players[name].referee
        before = referee.served()
        _continue(contender)
        done = contender.end()
        served[name] += _settled(referee) - before
        if done is not None and not 0 <= served[name] - done <= contender.slack:
            raise BenchError(f"bench: {name} counted {done} operations, but the server {served[name]}")
    return readings


def _turn(referee: Referee, contender: Contender, turn_s: float) -> Reading:
    processes = [psutil.Process(pid) for pid in contender.pids()]
    server = [psutil.Process(pid) for pid in referee.pids()]
    served = referee.served()
    generator_s, server_s, machine_s, began_ns = _cpu_s(processes), _cpu_s(server), _machine_s(), monotonic_ns()
    _continue(contender)
    contender.attend(began_ns + int(turn_s * NS_PER_S))
    ended_ns = monotonic_ns()
    _stop(contender)
    return Reading(
        operations=_settled(referee) - served,
        seconds=(ended_ns - began_ns) / NS_PER_S,
        generator_cpu_s=_cpu_s(processes) - generator_s,
        server_cpu_s=_cpu_s(server) - server_s,
        machine_cpu_s=_machine_s() - machine_s,
    )


def _settled(referee: Referee) -> int:
    """What was served, once all that was sent is: nobody is running now. Raises BenchError when it does not end."""
    served = referee.served()
    for _ in range(_RESTLESS):
        time.sleep(_REST_S)
        before, served = served, referee.served()
        if served == before:
            return served
    raise BenchError(
        "bench: the server did not come to rest after a turn: "
        "somebody else loads it, or had a contender go on that we had stopped"
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
        while not _is_stopped(pid):
            time.sleep(_STOP_S)


def _is_stopped(pid: int) -> bool:
    """Whether all threads of a process have stopped; it need not be our child. Raises BenchError if it has ended."""
    states = set()
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):  # a thread that has just ended
            states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    if not states or states & {"Z", "X"}:
        raise BenchError("bench: a contender ended before its time")
    return states == {"T"}


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _machine_s() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # User time holds that of guests already.
    return float(sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))
