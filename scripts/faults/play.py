"""A round, played: a fleet, what goes wrong, and what is seen of it from outside."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path

import psutil
import redis

from common.errors import EXIT_INTERRUPTED
from scripts.faults import counts
from scripts.faults.draws import COSTS_OPERATIONS, OUTAGES, TARGET, Draw, Kind, PlannedFault
from scripts.faults.fleet import SoakFleet
from scripts.faults.judge import Seen
from scripts.faults.processes import memory_mib, ports_to, runs, send, workers_of
from scripts.faults.trouble import Trouble

TURN_S = 0.03
SAMPLE_EVERY_S = 0.25
RETURN_S = {Kind.COORDINATOR_KILLED: 3.0, Kind.JOURNAL_FULL: 4.0}
"""How long an outage may last after its cause; 1 s for others."""
WATCH_S = 2.0
"""How long after the end nothing may reach the server."""
LONGEST_S = 150.0
"""No round may last longer from the last thing that went wrong."""
BAD_WORDS = ("Traceback (most recent call last)", "a bug in redis-stampede", "Assertion failed", "Fatal Python error")
BORN_ORPHAN = "EOFError: Ran out of input"
"""What multiprocess itself says in a process whose parent was killed while it was being spawned."""
AGENT_CODES = {0, 4, 5, 130, 143, -signal.SIGKILL}


class Round:
    """One round, from its server to its last process. Made for one `play`."""

    def __init__(self, drawn: Draw, directory: Path) -> None:
        """directory: takes what everybody says and leaves; it must exist, and be empty."""
        self._drawn = drawn
        self._fleet = SoakFleet(drawn, directory)
        self._trouble = Trouble(self._fleet)
        self.seen = Seen(lease_s=drawn.lease_s)
        self.timeline: list[str] = []
        self._loaded_s: float | None = None
        self._ended = False
        self._first_fault_s: float | None = None
        self._samples: list[tuple[float, int]] = []
        self._sampled_s = 0.0

    def play(self) -> Seen:
        """All of it; what was seen. Ends every process that it started."""
        try:
            self._begin()
            self._run_until_the_end()
            self._read_summary()
            self._watch_afterwards()
            self._read_results()
            self._trouble.end_all()
            self._collect()
            if self._drawn.reuses:
                self._serve_another_run()
            self._dismiss_agents()
            self._look_for_leftovers()
        finally:
            self._trouble.close()
            self._fleet.close()
        self._look_for_bad_words()
        return self.seen

    def _note(self, text: str) -> None:
        self.timeline.append(f"{self._fleet.now_s:6.2f} s  {text}")

    # -- until its end

    def _begin(self) -> None:
        self._fleet.prepare()
        for number, agent in enumerate(self._drawn.agents):
            if not agent.late_s:
                self._fleet.start_agent(number)
        self._start_coordinator()

    def _start_coordinator(self, resume: str | None = None) -> None:
        self._note(f"coordinator started{f', to resume {resume}' if resume else ''}")
        self._fleet.start_coordinator(f"coordinator-{len(self.seen.codes)}", resume)

    def _run_until_the_end(self) -> None:
        due = list(self._drawn.faults)
        last_s = 0.0
        while not self._ended:
            self._turn()
            for number, agent in enumerate(self._drawn.agents):
                if self._fleet.agents[number].command is None and self._fleet.now_s >= agent.late_s:
                    self._fleet.start_agent(number)
            for fault in list(due):
                zero_s = 0.0 if fault.early else self._loaded_s
                if zero_s is not None and self._fleet.now_s >= zero_s + fault.at_s:
                    due.remove(fault)
                    self._inflict(fault)
                    last_s = self._fleet.now_s + fault.seconds
            self._follow_coordinator()
            if self._fleet.now_s > last_s + self._drawn.length_s + LONGEST_S:
                self.seen.problems.append(f"it did not end within {self._fleet.now_s:.0f} s")
                return

    def _inflict(self, fault: PlannedFault) -> None:
        happens = self._trouble.inflict(fault)
        self._note(f"{fault}{'' if happens else ' (not possible then)'}")
        if happens:
            self.seen.happened.append(fault.kind)
            if fault.kind in OUTAGES:
                self.seen.outage_s += fault.seconds + RETURN_S.get(fault.kind, 1.0)
            if self._first_fault_s is None:
                self._first_fault_s = self._fleet.now_s

    def _follow_coordinator(self) -> None:
        """Start another one after one that was killed, or could not write; until one comes to its own end."""
        fleet, trouble = self._fleet, self._trouble
        command = fleet.coordinator
        if command is not None and command.code is not None:
            self._note(f"coordinator ended with {command.code}")
            killed = command.code == -signal.SIGKILL
            # A Ctrl-C in its very last moment ends it by the signal, which a shell calls 130, too.
            code = EXIT_INTERRUPTED if command.code == -signal.SIGINT else command.code
            self.seen.codes.append(None if killed else code)
            fleet.coordinator = None
            unwritable = Kind.JOURNAL_FULL in self.seen.happened and command.code == 2
            if not killed and not (unwritable and fleet.is_open):
                self._ended = True
                return
            fleet.coordinator_gone_s = fleet.coordinator_gone_s or fleet.now_s
            trouble.restart_s = trouble.restart_s or fleet.now_s + 1.0
        if command is None and trouble.restart_s is not None and fleet.now_s >= trouble.restart_s:
            trouble.restart_s = None
            self._restart_coordinator()

    def _restart_coordinator(self) -> None:
        if self._fleet.is_open:
            self.seen.resumes += 1
            self._start_coordinator(self._fleet.folders[-1].name)
        elif self._fleet.journal.closed is not None:
            self._note("it was killed after the end of the run: its report follows from the journal")
            run = self._fleet.folders[-1].name
            self._fleet.start(["coordinator", "report", run, "--out", str(self._fleet.out)], "report").process.wait(60)
            self._ended = True
        else:
            if self._drawn.plan["workload"].get("preload"):
                self.seen.is_comparable = False  # what the first run preloaded is in no report
            self._start_coordinator()

    # -- what is looked at all the time

    def _turn(self) -> None:
        time.sleep(TURN_S)
        for command in self._fleet.commands:
            command.drain()
        if self._fleet.now_s >= self._sampled_s + SAMPLE_EVERY_S:
            self._sampled_s = self._fleet.now_s
            self._sample()
        for kind in self._trouble.end_what_is_due():
            self._note(f"end of {kind.name}")

    def _sample(self) -> None:
        if self._loaded_s is None and self._fleet.journal.started is not None:
            self._loaded_s = self._fleet.now_s
            self._note("the load began")
        self._fleet.find_local_agents()
        coordinator = self._fleet.coordinator
        if coordinator is not None and coordinator.code is None:
            self.seen.memory_mib = max(self.seen.memory_mib, memory_mib(coordinator.pid))
        with contextlib.suppress(redis.RedisError):
            total = sum(counts.server_calls(self._fleet.asked).values())
            self._samples.append((self._fleet.now_s, total))
            self._check_fences()

    def _check_fences(self) -> None:
        """An agent that nobody can have renewed must have stopped its load once lease and drain have passed."""
        fleet = self._fleet
        for agent in fleet.agents:
            since = [at_s for at_s in (agent.stopped_s, agent.deaf_s, fleet.coordinator_gone_s) if at_s is not None]
            alone_s = fleet.now_s - min(since, default=fleet.now_s)
            if alone_s < self._drawn.patience_s or not runs(agent.pid):
                agent.calls = None
                continue
            ports = ports_to([worker.pid for worker in workers_of(agent.pid)], fleet.server_port)
            by_port = counts.calls_by_port(fleet.asked)
            done = sum(calls for port, calls in by_port.items() if port in ports)
            if agent.calls is not None and done > agent.calls:
                self.seen.problems.append(
                    f"unfenced: agent {agent.pid} did {done - agent.calls} operations more at {fleet.now_s:.1f} s, "
                    f"{alone_s:.1f} s after it had run, or heard its coordinator, for the last time"
                )
            agent.calls = done

    # -- after its end

    def _read_summary(self) -> None:
        for folder in reversed(self._fleet.folders):
            if (folder / "summary.json").exists():
                self.seen.summary = json.loads((folder / "summary.json").read_text())
                return
        if self._fleet.journal.closed is not None:
            self.seen.problems.append("the run was closed, but left no summary.json")

    def _watch_afterwards(self) -> None:
        """Whether anything reaches the server after the end: of a run that was stopped at once, or never began, once no
        agent can have a lease any more."""
        at_once = Kind.INTERRUPTED_TWICE in self.seen.happened or self.seen.summary is None
        self._pass(self._drawn.patience_s if at_once and self._ended and self.seen.happened else 0.0)
        self._trouble.end_all(Kind.TARGET_STOPPED)
        self.seen.fenced_calls = self._fleet.calls()
        self._pass(WATCH_S)
        self.seen.later_calls = self._fleet.calls() or 0
        self.seen.is_comparable = self.seen.is_comparable and not self._trouble.target_lost

    def _pass(self, seconds: float) -> None:
        until_s = self._fleet.now_s + seconds
        while self._fleet.now_s < until_s:
            self._turn()

    def _read_results(self) -> None:
        with contextlib.suppress(redis.RedisError):
            self.seen.keys_left = int(self._fleet.asked.dbsize())
            if self._drawn.plan["workload"]["clean_up"] == "none":
                self.seen.incremented = counts.counted_up(self._fleet.asked)
        if self._first_fault_s is not None:
            # What was done some seconds before the first fault has been reported.
            before = [total for at_s, total in self._samples if at_s < self._first_fault_s - 4.0]
            self.seen.lost_room = self.seen.later_calls - (before[-1] if before else 0)

    def _collect(self) -> None:
        """What living agents kept for a run that ended without them."""
        summary, fleet = self.seen.summary, self._fleet
        if summary is None or Kind.AGENT_KILLED in self.seen.happened:
            return
        if all(agent["state"] == "finished" for agent in summary["agents"]):
            return
        self._start_coordinator(fleet.folders[-1].name)
        command = fleet.coordinator
        assert command is not None
        until_s = fleet.now_s + 120.0
        while command.code is None and fleet.now_s < until_s:
            self._turn()
        self._note(f"the coordinator that collects ended with {command.code}")
        if command.code is None:
            self.seen.problems.append("collecting what agents kept did not end within 120 s")
        elif command.code == 2 and "that run has ended" not in command.said:
            self.seen.problems.append(f"collecting what agents kept: {command.said.strip().splitlines()[-1:]}")
        elif command.code != 2:
            self.seen.codes.append(command.code)
            self.seen.collected = True
            self._read_summary()
        self.seen.later_calls = fleet.calls() or self.seen.later_calls

    def _serve_another_run(self) -> None:
        """Agents whose results are safe serve the next run."""
        fleet = self._fleet
        harmed = set(self.seen.happened) & {*COSTS_OPERATIONS, *TARGET, Kind.AGENT_TERMINATED}
        remote = zip(fleet.agents, self._drawn.agents, strict=False)
        # One that has heard neither that its results are safe nor that the run is over keeps them for ten leases.
        able = [agent for agent, drawn in remote if agent.joins and not drawn.once and agent.is_free]
        summary = self.seen.summary
        if summary is None or harmed or not able or any(one["state"] != "finished" for one in summary["agents"]):
            return
        args = ["coordinator", "start", "--bind", fleet.endpoint, "--token-file", str(fleet.token)]
        args += ["--out", str(fleet.directory / "next"), "--expect-agents", str(len(able)), "--url", fleet.server.url]
        follower = fleet.start([*args, "--requests", "60", "--wait", "30s"], "coordinator-next")
        until_s = fleet.now_s + 60.0
        while follower.code is None and fleet.now_s < until_s:
            self._turn()
        self.seen.reused = follower.code == 0
        if follower.code != 0:
            self.seen.problems.append(f"agents could not serve a next run: {follower.said.strip().splitlines()[-1:]}")

    def _dismiss_agents(self) -> None:
        """Agents that wait for a next run leave when they are terminated, and so do those that keep results for a
        coordinator that comes back. All others have served once, and left."""
        waiting = [agent for agent in self._fleet.agents if agent.joins or self.seen.happened]
        for patience_s in (8.0, 30.0):
            left = [agent for agent in waiting if agent.is_there]
            for agent in left:
                send(agent.pid, signal.SIGTERM)
            until_s = self._fleet.now_s + patience_s
            while self._fleet.now_s < until_s and any(agent.is_there for agent in left):
                self._turn()
        for agent in self._fleet.agents:
            if agent.command is None:
                continue
            if agent.joins:
                self.seen.problems.append(f"{agent.command.log.name}: it was terminated twice, and still runs")
            elif agent.command.code not in AGENT_CODES:
                self.seen.problems.append(f"{agent.command.log.name}: exit code {agent.command.code}")

    def _look_for_leftovers(self) -> None:
        """Whatever still runs of ours, after its time to end."""
        until_s = self._fleet.now_s + 20.0
        while (left := _ours()) and self._fleet.now_s < until_s:
            self._turn()
        for process in left:
            with contextlib.suppress(psutil.Error):
                words = " ".join(process.cmdline())[:160]
                self.seen.problems.append(f"left behind: process {process.pid} ({words})")
                process.kill()

    def _look_for_bad_words(self) -> None:
        for command in self._fleet.commands:
            said = command.said
            if command.code == -signal.SIGKILL and BORN_ORPHAN in said:
                continue
            self.seen.problems += [f"{command.log.name} has {words!r}" for words in BAD_WORDS if words in said]
        self.seen.problems += [f"{error} has a traceback" for error in self._fleet.out.glob("*/error.txt")]


def _ours() -> list[psutil.Process]:
    """Our programs among our children and theirs, which are adopted when their parents end."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = " ".join(child.cmdline())
            ours = ("agent join", "agent.cli", "coordinator start", "spawn_main")
            if runs(child.pid) and any(name in words for name in ours):
                found.append(child)
    return found
