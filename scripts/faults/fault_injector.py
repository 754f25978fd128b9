"""Injects faults into the fleet of a round, and ends them."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from scripts.faults.fleet import SoakAgent, SoakFleet
from scripts.faults.processes import CONT, KILL, STOP, FleetProcess, is_running, send_signal, workers_of
from scripts.faults.round_specs import FaultKind, PlannedFault


@dataclass(slots=True)
class _FaultEnd:
    """When and how a fault ends."""

    at_s: float
    kind: FaultKind
    action: Callable[[], None]
    done: bool = False


class FaultInjector:
    """Injects faults into a fleet. restart_s: when to start a coordinator again after a kill. target_lost: the target
    was restarted, and its counters began at zero."""

    def __init__(self, fleet: SoakFleet) -> None:
        self._fleet = fleet
        self.restart_s: float | None = None
        self.target_lost = False
        self._ends: list[_FaultEnd] = []
        self._hostile_peers: list[subprocess.Popen[bytes]] = []

    def inject(self, fault: PlannedFault) -> bool:
        """Inject a fault. Returns whether this was possible."""
        agents = self._fleet.agents
        relayed = [agent for agent in agents if agent.relay is not None]
        agent = agents[fault.agent % len(agents)] if agents else None
        if relayed and self._network_fault(fault, relayed[fault.agent % len(relayed)]):
            return True
        if agent is not None and is_running(agent.pid) and self._process_fault(fault, agent):
            return True
        return self._coordinator_fault(fault) or self._target_fault(fault) or self._start_hostile_peer(fault)

    def end_due_faults(self) -> list[FaultKind]:
        """End all faults whose time has come. Returns their kinds."""
        due = [end for end in self._ends if not end.done and self._fleet.now_s >= end.at_s]
        for end in due:
            end.done = True
            end.action()
        return [end.kind for end in due]

    def end_all(self, kind: FaultKind | None = None) -> None:
        """End all current faults, or those of one kind."""
        for end in self._ends:
            if not end.done and kind in (None, end.kind):
                end.done = True
                end.action()

    def close(self) -> None:
        """Kill hostile peers. Idempotent."""
        for peer in self._hostile_peers:
            peer.kill()
            peer.wait()

    def _end_later(self, fault: PlannedFault, action: Callable[[], None]) -> None:
        self._ends.append(_FaultEnd(self._fleet.now_s + fault.seconds, fault.kind, action))

    def _network_fault(self, fault: PlannedFault, agent: SoakAgent) -> bool:
        relay = agent.relay
        assert relay is not None
        match fault.kind:
            case FaultKind.CUT:
                relay.refuses = True
            case FaultKind.RESET:
                relay.reset()
            case FaultKind.STORM:
                for number in range(int(fault.seconds / 0.15)):
                    self._ends.append(_FaultEnd(self._fleet.now_s + 0.15 * number, fault.kind, relay.reset))
            case FaultKind.ONE_CUT:
                relay.dead = fault.agent
            case FaultKind.BLACKHOLE:
                relay.blocks_to_coordinator = relay.blocks_to_agent = True
            case FaultKind.DEAF:
                relay.blocks_to_agent = True
            case FaultKind.MUTE:
                relay.blocks_to_coordinator = True
            case FaultKind.HALF_OPEN:
                relay.half_open()
            case FaultKind.DELAY:
                relay.delay_s = 0.05 + 0.3 * (fault.seconds % 1)
            case FaultKind.THROTTLE:
                relay.bytes_per_s = 4_000.0 + 20_000.0 * (fault.seconds % 1)
            case _:
                return False
        if relay.refuses or relay.blocks_to_agent:
            agent.unreachable_since_s = agent.unreachable_since_s or self._fleet.now_s

        def heal() -> None:
            relay.heal()
            agent.unreachable_since_s = None

        self._end_later(fault, heal)
        return True

    def _process_fault(self, fault: PlannedFault, agent: SoakAgent) -> bool:
        workers = workers_of(agent.pid)
        worker = workers[fault.agent % len(workers)].pid if workers else None
        match fault.kind:
            case FaultKind.AGENT_KILLED:
                send_signal(agent.pid, KILL)
            case FaultKind.AGENT_TERMINATED:
                send_signal(agent.pid, signal.SIGTERM)
            case FaultKind.AGENT_STOPPED:
                send_signal(agent.pid, STOP)
                agent.stopped_since_s = agent.stopped_since_s or self._fleet.now_s

                def resume() -> None:
                    send_signal(agent.pid, CONT)
                    agent.stopped_since_s = None

                self._end_later(fault, resume)
            case FaultKind.AGENT_PAUSED if agent.command is not None:
                command = agent.command
                command.pause_terminal(paused=True)
                self._end_later(fault, lambda: command.pause_terminal(paused=False))
            case FaultKind.WORKER_KILLED if worker is not None:
                send_signal(worker, KILL)
            case FaultKind.WORKER_STOPPED if worker is not None:
                send_signal(worker, STOP)
                self._end_later(fault, lambda: send_signal(worker, CONT))
            case _:
                return False
        return True

    def _coordinator_fault(self, fault: PlannedFault) -> bool:
        command = self._fleet.coordinator
        if command is None or command.code is not None:
            return False
        match fault.kind:
            case FaultKind.COORDINATOR_KILLED:
                command.signal(KILL)
                self.restart_s = self._fleet.now_s + min(fault.seconds, 8.0)
                self._fleet.coordinator_gone_since_s = self._fleet.coordinator_gone_since_s or self._fleet.now_s
            case FaultKind.COORDINATOR_STOPPED:
                command.signal(STOP)
                self._fleet.coordinator_gone_since_s = self._fleet.coordinator_gone_since_s or self._fleet.now_s
                self._end_later(fault, lambda: self._resume_coordinator(command))
            case FaultKind.COORDINATOR_PAUSED:
                command.pause_terminal(paused=True)
                self._end_later(fault, lambda: command.pause_terminal(paused=False))
            case FaultKind.INTERRUPTED if command.output:  # without output, Python is still starting
                command.signal(signal.SIGINT)
            case FaultKind.INTERRUPTED_TWICE if command.output:
                command.signal(signal.SIGINT)
                again = PlannedFault(fault.kind, fault.at_s, min(fault.seconds, 1.0), fault.agent)
                self._end_later(again, lambda: command.signal(signal.SIGINT))
            case FaultKind.JOURNAL_FULL if self._fleet.journal.started is not None:
                limit = max(path.stat().st_size for path in self._fleet.out.glob("*/journal"))
                with contextlib.suppress(psutil.Error, ProcessLookupError):
                    _, hard = resource.prlimit(command.pid, resource.RLIMIT_FSIZE)
                    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (limit, hard))
                self.restart_s = self._fleet.now_s + fault.seconds
            case _:
                return False
        return True

    def _resume_coordinator(self, command: FleetProcess) -> None:
        command.signal(CONT)
        if self._fleet.coordinator is command and command.code is None:
            self._fleet.coordinator_gone_since_s = None

    def _target_fault(self, fault: PlannedFault) -> bool:
        match fault.kind:
            case FaultKind.TARGET_STOPPED if not self.target_lost:
                self._fleet.signal_server(STOP)
                self._end_later(fault, self._resume_target)
            case FaultKind.TARGET_KILLED if not self.target_lost:
                self.target_lost = True
                self._fleet.server.stop()
                self._end_later(fault, self._fleet.restart_server)
            case _:
                return False
        return True

    def _resume_target(self) -> None:
        if not self.target_lost:
            self._fleet.signal_server(CONT)

    def _start_hostile_peer(self, fault: PlannedFault) -> bool:
        names = {FaultKind.FLOOD: "flood", FaultKind.STRANGERS: "strangers", FaultKind.GARBAGE: "garbage"}
        if fault.kind not in names:
            return False
        seconds = str(min(fault.seconds, 4.0))
        command = [sys.executable, "-m", "scripts.faults.hostile_peers"]
        command += [names[fault.kind], str(self._fleet.port), seconds, str(self._fleet.token)]
        self._hostile_peers.append(subprocess.Popen(command))
        return True
