"""Runs a round: starts the fleet, injects the faults, and observes the run from outside."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path

import psutil
import redis

from common.errors import EXIT_INTERRUPTED
from scripts.faults import server_counts
from scripts.faults.fault_injector import FaultInjector
from scripts.faults.fleet import SoakFleet
from scripts.faults.processes import FleetProcess, is_running, memory_mib, ports_to, send_signal, workers_of
from scripts.faults.round_checks import Observations
from scripts.faults.round_specs import MAY_LOSE_OPERATIONS, OUTAGES, TARGET_FAULTS, FaultKind, PlannedFault, RoundSpec

POLL_S = 0.03
SAMPLE_EVERY_S = 0.25
RETURN_S = {FaultKind.COORDINATOR_KILLED: 3.0, FaultKind.JOURNAL_FULL: 4.0}
"""How long a fleet may take to recover after the end of a fault; 1 s for other kinds."""
WATCH_S = 2.0
"""After the end of a run, the server is watched for this long: no operation may reach it."""
MAX_ROUND_S = 150.0
"""Longest time from the last fault to the end of the round, beyond the length of the load."""
FORBIDDEN_OUTPUT = (
    "Traceback (most recent call last)",
    "a bug in redis-stampede",
    "Assertion failed",
    "Fatal Python error",
)
SPAWN_INTERRUPTED = "EOFError: Ran out of input"
"""multiprocess prints this, with a traceback, in a process whose parent was killed during the spawn."""
AGENT_CODES = {0, 4, 5, 130, 143, -signal.SIGKILL}


class RoundRunner:
    """Runs one round, from its server to its last process. Call `run` once."""

    def __init__(self, spec: RoundSpec, directory: Path) -> None:
        """directory: for the output and files of all processes. It must exist and be empty."""
        self._spec = spec
        self._fleet = SoakFleet(spec, directory)
        self._injector = FaultInjector(self._fleet)
        self.observed = Observations(lease_s=spec.lease_s)
        self.timeline: list[str] = []
        self._loaded_s: float | None = None
        self._ended = False
        self._first_fault_s: float | None = None
        self._samples: list[tuple[float, int]] = []
        self._sampled_s = 0.0

    def run(self) -> Observations:
        """Run the round and return the observations. Ends all processes of the round."""
        try:
            self._start()
            self._run_until_end()
            self._read_summary()
            self._watch_afterwards()
            self._read_results()
            self._injector.end_all()
            self._collect_kept_results()
            if self._spec.serves_next_run:
                self._serve_another_run()
            self._dismiss_agents()
            self._check_leftover_processes()
        finally:
            self._injector.close()
            self._fleet.close()
        self._check_output()
        return self.observed

    def _note(self, text: str) -> None:
        self.timeline.append(f"{self._fleet.now_s:6.2f} s  {text}")

    # -- until the end of the run

    def _start(self) -> None:
        self._fleet.prepare()
        for number, agent in enumerate(self._spec.agents):
            if not agent.late_s:
                self._fleet.start_agent(number)
        self._start_coordinator()

    def _start_coordinator(self, resume: str | None = None) -> None:
        self._note(f"coordinator started{f', to resume {resume}' if resume else ''}")
        self._fleet.start_coordinator(f"coordinator-{len(self.observed.codes)}", resume)

    def _run_until_end(self) -> None:
        due = list(self._spec.faults)
        last_s = 0.0
        while not self._ended:
            self._poll()
            for number, agent in enumerate(self._spec.agents):
                if self._fleet.agents[number].command is None and self._fleet.now_s >= agent.late_s:
                    self._fleet.start_agent(number)
            for fault in list(due):
                zero_s = 0.0 if fault.early else self._loaded_s
                if zero_s is not None and self._fleet.now_s >= zero_s + fault.at_s:
                    due.remove(fault)
                    self._inject(fault)
                    last_s = self._fleet.now_s + fault.seconds
            self._follow_coordinator()
            if self._fleet.now_s > last_s + self._spec.length_s + MAX_ROUND_S:
                self.observed.problems.append(f"the run did not end within {self._fleet.now_s:.0f} s")
                return

    def _inject(self, fault: PlannedFault) -> None:
        is_injected = self._injector.inject(fault)
        self._note(f"{fault}{'' if is_injected else ' (not possible at that time)'}")
        if is_injected:
            self.observed.faults.append(fault.kind)
            if fault.kind in OUTAGES:
                self.observed.outage_s += fault.seconds + RETURN_S.get(fault.kind, 1.0)
            if self._first_fault_s is None:
                self._first_fault_s = self._fleet.now_s

    def _follow_coordinator(self) -> None:
        """Restart a coordinator that was killed or could not write its journal. Notice one that ended by itself."""
        fleet, injector = self._fleet, self._injector
        command = fleet.coordinator
        if command is not None and command.code is not None:
            self._note(f"coordinator ended with {command.code}")
            killed = command.code == -signal.SIGKILL
            # A Ctrl-C just before the exit may end the process by the signal; a shell reports 130 for this too.
            code = EXIT_INTERRUPTED if command.code == -signal.SIGINT else command.code
            self.observed.codes.append(None if killed else code)
            fleet.coordinator = None
            unwritable = FaultKind.JOURNAL_FULL in self.observed.faults and command.code == 2
            if not killed and not (unwritable and fleet.is_open):
                self._ended = True
                return
            fleet.coordinator_gone_since_s = fleet.coordinator_gone_since_s or fleet.now_s
            injector.restart_s = injector.restart_s or fleet.now_s + 1.0
        if command is None and injector.restart_s is not None and fleet.now_s >= injector.restart_s:
            injector.restart_s = None
            self._restart_coordinator()

    def _restart_coordinator(self) -> None:
        if self._fleet.is_open:
            self.observed.resumes += 1
            self._start_coordinator(self._fleet.folders[-1].name)
        elif self._fleet.journal.closed is not None:
            self._note("coordinator was killed after the end of the run: make its report from the journal")
            run = self._fleet.folders[-1].name
            self._fleet.start(["coordinator", "report", run, "--out", str(self._fleet.out)], "report").process.wait(60)
            self._ended = True
        else:
            if self._spec.plan["workload"].get("preload"):
                self.observed.is_comparable = False  # no report has the keys that the first run preloaded
            self._start_coordinator()

    # -- polled all the time

    def _poll(self) -> None:
        time.sleep(POLL_S)
        for command in self._fleet.commands:
            command.drain()
        if self._fleet.now_s >= self._sampled_s + SAMPLE_EVERY_S:
            self._sampled_s = self._fleet.now_s
            self._sample()
        for kind in self._injector.end_due_faults():
            self._note(f"end of {kind.name}")

    def _sample(self) -> None:
        if self._loaded_s is None and self._fleet.journal.started is not None:
            self._loaded_s = self._fleet.now_s
            self._note("the load began")
        self._fleet.find_local_agents()
        coordinator = self._fleet.coordinator
        if coordinator is not None and coordinator.code is None:
            self.observed.memory_mib = max(self.observed.memory_mib, memory_mib(coordinator.pid))
        with contextlib.suppress(redis.RedisError):
            total = sum(server_counts.server_calls(self._fleet.client).values())
            self._samples.append((self._fleet.now_s, total))
            self._check_late_load()

    def _check_late_load(self) -> None:
        """Check that an agent without a coordinator has stopped its load once lease and drain have passed."""
        fleet = self._fleet
        for agent in fleet.agents:
            causes = (agent.stopped_since_s, agent.unreachable_since_s, fleet.coordinator_gone_since_s)
            since = [at_s for at_s in causes if at_s is not None]
            alone_s = fleet.now_s - min(since, default=fleet.now_s)
            if alone_s < self._spec.fence_s or not is_running(agent.pid):
                agent.calls = None
                continue
            ports = ports_to([worker.pid for worker in workers_of(agent.pid)], fleet.server_port)
            by_port = server_counts.calls_by_port(fleet.client)
            done = sum(calls for port, calls in by_port.items() if port in ports)
            if agent.calls is not None and done > agent.calls:
                self.observed.problems.append(
                    f"late load: agent {agent.pid} sent {done - agent.calls} operations at {fleet.now_s:.1f} s, "
                    f"{alone_s:.1f} s after it was stopped or lost its coordinator"
                )
            agent.calls = done

    # -- after the end of the run

    def _read_summary(self) -> None:
        for folder in reversed(self._fleet.folders):
            if (folder / "summary.json").exists():
                self.observed.summary = json.loads((folder / "summary.json").read_text())
                return
        if self._fleet.journal.closed is not None:
            self.observed.problems.append("the run ended, but there is no summary.json")

    def _watch_afterwards(self) -> None:
        """Count the server's calls twice after the end. After a run that was stopped at once or never began, first wait
        until all leases have ended."""
        at_once = FaultKind.INTERRUPTED_TWICE in self.observed.faults or self.observed.summary is None
        self._poll_for(self._spec.fence_s if at_once and self._ended and self.observed.faults else 0.0)
        self._injector.end_all(FaultKind.TARGET_STOPPED)
        self.observed.calls_at_fence = self._fleet.calls()
        self._poll_for(WATCH_S)
        self.observed.calls_at_end = self._fleet.calls() or 0
        self.observed.is_comparable = self.observed.is_comparable and not self._injector.target_lost

    def _poll_for(self, seconds: float) -> None:
        until_s = self._fleet.now_s + seconds
        while self._fleet.now_s < until_s:
            self._poll()

    def _read_results(self) -> None:
        with contextlib.suppress(redis.RedisError):
            self.observed.keys_left = int(self._fleet.client.dbsize())
            if self._spec.plan["workload"]["clean_up"] == "none":
                self.observed.incr_executed = server_counts.incr_executed(self._fleet.client)
        if self._first_fault_s is not None:
            # Operations from more than 4 s before the first fault have been reported, so they cannot be lost.
            before = [total for at_s, total in self._samples if at_s < self._first_fault_s - 4.0]
            self.observed.max_lost = self.observed.calls_at_end - (before[-1] if before else 0)

    def _collect_kept_results(self) -> None:
        """Resume a run that ended without some living agents, to collect the results that they kept."""
        summary, fleet = self.observed.summary, self._fleet
        if summary is None or FaultKind.AGENT_KILLED in self.observed.faults:
            return
        if all(agent["state"] == "finished" for agent in summary["agents"]):
            return
        self._start_coordinator(fleet.folders[-1].name)
        command = fleet.coordinator
        assert command is not None
        until_s = fleet.now_s + 120.0
        while command.code is None and fleet.now_s < until_s:
            self._poll()
        self._note(f"the collecting coordinator ended with {command.code}")
        if command.code is None:
            self.observed.problems.append("collecting kept results did not end within 120 s")
        elif command.code == 2 and "that run has ended" not in command.output:
            self.observed.problems.append(f"collecting kept results: {_last_line(command)}")
        elif command.code != 2:
            self.observed.codes.append(command.code)
            self.observed.collected = True
            self._read_summary()
        self.observed.calls_at_end = fleet.calls() or self.observed.calls_at_end

    def _serve_another_run(self) -> None:
        """Start another run with agents that have delivered their results and wait for a run."""
        fleet = self._fleet
        harmed = set(self.observed.faults) & {*MAY_LOSE_OPERATIONS, *TARGET_FAULTS, FaultKind.AGENT_TERMINATED}
        remote = zip(fleet.agents, self._spec.agents, strict=False)
        # An agent that received neither FinalAck nor the end of the run keeps its results for ten leases.
        able = [agent for agent, spec in remote if agent.command_runs and not spec.once and agent.is_free]
        summary = self.observed.summary
        if summary is None or harmed or not able or any(agent["state"] != "finished" for agent in summary["agents"]):
            return
        args = ["coordinator", "start", "--bind", fleet.endpoint, "--token-file", str(fleet.token)]
        args += ["--out", str(fleet.directory / "next"), "--expect-agents", str(len(able)), "--url", fleet.server.url]
        coordinator = fleet.start([*args, "--requests", "60", "--wait", "30s"], "coordinator-next")
        until_s = fleet.now_s + 60.0
        while coordinator.code is None and fleet.now_s < until_s:
            self._poll()
        self.observed.reused = coordinator.code == 0
        if coordinator.code != 0:
            self.observed.problems.append(f"agents could not serve another run: {_last_line(coordinator)}")

    def _dismiss_agents(self) -> None:
        """Terminate agents that wait for another run, or that keep results for a coordinator. All other agents have
        served one run and left."""
        waiting = [agent for agent in self._fleet.agents if agent.command_runs or self.observed.faults]
        for timeout_s in (8.0, 30.0):
            alive = [agent for agent in waiting if agent.is_alive]
            for agent in alive:
                send_signal(agent.pid, signal.SIGTERM)
            until_s = self._fleet.now_s + timeout_s
            while self._fleet.now_s < until_s and any(agent.is_alive for agent in alive):
                self._poll()
        for agent in self._fleet.agents:
            if agent.command is None:
                continue
            if agent.command_runs:
                self.observed.problems.append(f"{agent.command.log.name}: still runs after two SIGTERM")
            elif agent.command.code not in AGENT_CODES:
                self.observed.problems.append(f"{agent.command.log.name}: exit code {agent.command.code}")

    def _check_leftover_processes(self) -> None:
        """Wait until all processes of the fleet have ended. Report and kill those that have not."""
        until_s = self._fleet.now_s + 20.0
        while (left := _our_processes()) and self._fleet.now_s < until_s:
            self._poll()
        for process in left:
            with contextlib.suppress(psutil.Error):
                command_line = " ".join(process.cmdline())[:160]
                self.observed.problems.append(f"left behind: process {process.pid} ({command_line})")
                process.kill()

    def _check_output(self) -> None:
        for command in self._fleet.commands:
            output = command.output
            if command.code == -signal.SIGKILL and SPAWN_INTERRUPTED in output:
                continue
            self.observed.problems += [
                f"{command.log.name} has {text!r}" for text in FORBIDDEN_OUTPUT if text in output
            ]
        self.observed.problems += [f"{error} has a traceback" for error in self._fleet.out.glob("*/error.txt")]


def _last_line(command: FleetProcess) -> str:
    return (command.output.strip().splitlines() or ["no output"])[-1]


def _our_processes() -> list[psutil.Process]:
    """Our programs among all descendants of this process, which adopts orphans."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command_line = " ".join(child.cmdline())
            ours = ("agent join", "agent.cli", "coordinator start", "spawn_main")
            if is_running(child.pid) and any(name in command_line for name in ours):
                found.append(child)
    return found
