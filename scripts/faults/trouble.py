"""What goes wrong in a round, done to its fleet, and undone again."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from scripts.faults.draws import Kind, PlannedFault
from scripts.faults.fleet import PlayedAgent, SoakFleet
from scripts.faults.processes import GO, KILL, STOP, FleetProcess, runs, send, workers_of


@dataclass(slots=True)
class _Undo:
    """What ends a fault, and when."""

    at_s: float
    kind: Kind
    what: Callable[[], None]
    done: bool = False


class Trouble:
    """Does faults to a fleet. restart_s: when to start a coordinator in the place of a killed one.
    target_lost: the target was restarted, and counts from nothing."""

    def __init__(self, fleet: SoakFleet) -> None:
        self._fleet = fleet
        self.restart_s: float | None = None
        self.target_lost = False
        self._undos: list[_Undo] = []
        self._intruders: list[subprocess.Popen[bytes]] = []

    def inflict(self, fault: PlannedFault) -> bool:
        """Whether it could be done."""
        agents = self._fleet.agents
        behind = [agent for agent in agents if agent.relay is not None]
        agent = agents[fault.agent % len(agents)] if agents else None
        if behind and self._network(fault, behind[fault.agent % len(behind)]):
            return True
        if agent is not None and runs(agent.pid) and self._process(fault, agent):
            return True
        return self._coordinator_fault(fault) or self._target_fault(fault) or self._intrusion(fault)

    def end_what_is_due(self) -> list[Kind]:
        """What has come to its end since the last call."""
        ended = [undo for undo in self._undos if not undo.done and self._fleet.now_s >= undo.at_s]
        for undo in ended:
            undo.done = True
            undo.what()
        return [undo.kind for undo in ended]

    def end_all(self, kind: Kind | None = None) -> None:
        """End what goes on, of one kind or of all."""
        for undo in self._undos:
            if not undo.done and kind in (None, undo.kind):
                undo.done = True
                undo.what()

    def close(self) -> None:
        """End intruders. Idempotent."""
        for intruder in self._intruders:
            intruder.kill()
            intruder.wait()

    def _later(self, fault: PlannedFault, what: Callable[[], None]) -> None:
        self._undos.append(_Undo(self._fleet.now_s + fault.seconds, fault.kind, what))

    def _network(self, fault: PlannedFault, agent: PlayedAgent) -> bool:
        relay = agent.relay
        assert relay is not None
        match fault.kind:
            case Kind.CUT:
                relay.refuses = True
            case Kind.RESET:
                relay.reset()
            case Kind.STORM:
                for number in range(int(fault.seconds / 0.15)):
                    self._undos.append(_Undo(self._fleet.now_s + 0.15 * number, fault.kind, relay.reset))
            case Kind.ONE_CUT:
                relay.dead = fault.agent
            case Kind.BLACKHOLE:
                relay.stops_up = relay.stops_down = True
            case Kind.DEAF:
                relay.stops_down = True
            case Kind.MUTE:
                relay.stops_up = True
            case Kind.HALF_OPEN:
                relay.half_open()
            case Kind.DELAY:
                relay.delay_s = 0.05 + 0.3 * (fault.seconds % 1)
            case Kind.THROTTLE:
                relay.bytes_per_s = 4_000.0 + 20_000.0 * (fault.seconds % 1)
            case _:
                return False
        if relay.refuses or relay.stops_down:
            agent.deaf_s = agent.deaf_s or self._fleet.now_s

        def heal() -> None:
            relay.heal()
            agent.deaf_s = None

        self._later(fault, heal)
        return True

    def _process(self, fault: PlannedFault, agent: PlayedAgent) -> bool:
        workers = workers_of(agent.pid)
        worker = workers[fault.agent % len(workers)].pid if workers else None
        match fault.kind:
            case Kind.AGENT_KILLED:
                send(agent.pid, KILL)
            case Kind.AGENT_TERMINATED:
                send(agent.pid, signal.SIGTERM)
            case Kind.AGENT_STOPPED:
                send(agent.pid, STOP)
                agent.stopped_s = agent.stopped_s or self._fleet.now_s

                def go_on() -> None:
                    send(agent.pid, GO)
                    agent.stopped_s = None

                self._later(fault, go_on)
            case Kind.AGENT_PAUSED if agent.command is not None:
                command = agent.command
                command.pause_terminal(paused=True)
                self._later(fault, lambda: command.pause_terminal(paused=False))
            case Kind.WORKER_KILLED if worker is not None:
                send(worker, KILL)
            case Kind.WORKER_STOPPED if worker is not None:
                send(worker, STOP)
                self._later(fault, lambda: send(worker, GO))
            case _:
                return False
        return True

    def _coordinator_fault(self, fault: PlannedFault) -> bool:
        command = self._fleet.coordinator
        if command is None or command.code is not None:
            return False
        match fault.kind:
            case Kind.COORDINATOR_KILLED:
                command.signal(KILL)
                self.restart_s = self._fleet.now_s + min(fault.seconds, 8.0)
                self._fleet.coordinator_gone_s = self._fleet.coordinator_gone_s or self._fleet.now_s
            case Kind.COORDINATOR_STOPPED:
                command.signal(STOP)
                self._fleet.coordinator_gone_s = self._fleet.coordinator_gone_s or self._fleet.now_s
                self._later(fault, lambda: self._let_coordinator_go_on(command))
            case Kind.COORDINATOR_PAUSED:
                command.pause_terminal(paused=True)
                self._later(fault, lambda: command.pause_terminal(paused=False))
            case Kind.INTERRUPTED if command.said:  # before that, Python itself is still starting
                command.signal(signal.SIGINT)
            case Kind.INTERRUPTED_TWICE if command.said:
                command.signal(signal.SIGINT)
                again = PlannedFault(fault.kind, fault.at_s, min(fault.seconds, 1.0), fault.agent)
                self._later(again, lambda: command.signal(signal.SIGINT))
            case Kind.JOURNAL_FULL if self._fleet.journal.started is not None:
                limit = max(path.stat().st_size for path in self._fleet.out.glob("*/journal"))
                with contextlib.suppress(psutil.Error, ProcessLookupError):
                    _, hard = resource.prlimit(command.pid, resource.RLIMIT_FSIZE)
                    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (limit, hard))
                self.restart_s = self._fleet.now_s + fault.seconds
            case _:
                return False
        return True

    def _let_coordinator_go_on(self, command: FleetProcess) -> None:
        command.signal(GO)
        if self._fleet.coordinator is command and command.code is None:
            self._fleet.coordinator_gone_s = None

    def _target_fault(self, fault: PlannedFault) -> bool:
        match fault.kind:
            case Kind.TARGET_STOPPED if not self.target_lost:
                self._fleet.signal_server(STOP)
                self._later(fault, self._resume_target)
            case Kind.TARGET_KILLED if not self.target_lost:
                self.target_lost = True
                self._fleet.server.stop()
                self._later(fault, self._fleet.restart_server)
            case _:
                return False
        return True

    def _resume_target(self) -> None:
        if not self.target_lost:
            self._fleet.signal_server(GO)

    def _intrusion(self, fault: PlannedFault) -> bool:
        names = {Kind.FLOOD: "flood", Kind.STRANGERS: "strangers", Kind.GARBAGE: "garbage"}
        if fault.kind not in names:
            return False
        seconds = str(min(fault.seconds, 4.0))
        module = [sys.executable, "-m", "scripts.faults.intruders"]
        intruder = subprocess.Popen(
            [*module, names[fault.kind], str(self._fleet.port), seconds, str(self._fleet.token)]
        )
        self._intruders.append(intruder)
        return True
